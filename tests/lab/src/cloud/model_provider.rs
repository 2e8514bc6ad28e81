//! A model provider that speaks the protocol of `OpenAI`, as far as a chat needs it. Its one model repeats what it is
//! asked to and counts: an answer shows which message it is for, and how many of them the gateway still has.

use axum::extract::Json;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Router, http::HeaderValue};
use serde_json::{Value, json};

/// The host name, of those that are reserved for examples.
pub const NAME: &str = "models.example";
/// Who has it may ask.
pub const KEY: &str = "lab-model-key";
/// What is to be repeated stands behind it: gateways put times and the like around what was written.
pub const MARK: &str = "parrot: ";
/// The model.
const MODEL: &str = "parrot";

/// What a gateway's `openclaw.json` must have to use it, with `key` or where that is found.
pub fn settings(key: &str) -> Value {
    json!({
        "models": {"providers": {"lab": {
            "baseUrl": format!("http://{NAME}/v1"), "apiKey": key, "api": "openai-completions",
            "models": [{"id": MODEL, "name": "Parrot", "contextWindow": 128_000, "maxTokens": 4096}],
        }}},
        "agents": {"defaults": {"model": {"primary": format!("lab/{MODEL}")}}},
    })
}

/// What it answers to the `count`th message.
pub fn answer(count: usize, message: &str) -> String {
    format!("Answer {count}: {message}")
}

/// The provider's API.
pub fn router() -> Router {
    Router::new().route("/v1/chat/completions", post(complete))
}

async fn complete(headers: HeaderMap, Json(request): Json<Value>) -> Response {
    let is_known = headers.get(header::AUTHORIZATION).and_then(|it| it.to_str().ok()).is_some_and(is_key);
    if !is_known {
        let refusal = json!({"error": {"message": "Incorrect API key provided", "code": "invalid_api_key"}});
        return (StatusCode::UNAUTHORIZED, Json(refusal)).into_response();
    }
    let messages = request["messages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut told: Vec<String> = messages.iter().filter(|message| message["role"] == "user").flat_map(marked).collect();
    told.dedup();
    let content = answer(told.len(), told.last().map(String::as_str).unwrap_or_default());
    let usage = json!({"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2});
    if request["stream"] != true {
        let message = json!({"role": "assistant", "content": content});
        let choices = json!([{"index": 0, "message": message, "finish_reason": "stop"}]);
        return Json(part("chat.completion", &choices, &usage)).into_response();
    }
    let choice = |delta: Value, reason: Value| json!([{"index": 0, "delta": delta, "finish_reason": reason}]);
    let first = choice(json!({"role": "assistant", "content": content}), Value::Null);
    let last = choice(json!({}), json!("stop"));
    let parts = [(first, Value::Null), (last, usage)];
    let parts = parts.map(|(choices, usage)| format!("data: {}\n\n", part("chat.completion.chunk", &choices, &usage)));
    let events = HeaderValue::from_static("text/event-stream");
    ([(header::CONTENT_TYPE, events)], parts.concat() + "data: [DONE]\n\n").into_response()
}

fn is_key(authorization: &str) -> bool {
    authorization.strip_prefix("Bearer ") == Some(KEY)
}

fn part(object: &str, choices: &Value, usage: &Value) -> Value {
    json!({"id": "lab", "object": object, "created": 0, "model": MODEL, "choices": choices, "usage": usage})
}

/// What a message asks to be repeated.
fn marked(message: &Value) -> Vec<String> {
    let content = &message["content"];
    let parts = content.as_array().into_iter().flatten().filter_map(|part| part["text"].as_str());
    let texts: Vec<&str> = content.as_str().into_iter().chain(parts).collect();
    let lines = texts.iter().flat_map(|text| text.lines());
    lines.filter_map(|line| Some(line.split_once(MARK)?.1.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(key: &str, request: Value) -> anyhow::Result<(StatusCode, String)> {
        let mut headers = HeaderMap::new();
        headers.insert(header::AUTHORIZATION, format!("Bearer {key}").parse()?);
        let response = complete(headers, Json(request)).await;
        let (status, body) = (response.status(), axum::body::to_bytes(response.into_body(), 1 << 16).await?);
        Ok((status, String::from_utf8(body.to_vec())?))
    }

    #[tokio::test]
    async fn the_last_message_is_repeated_in_one_piece_or_in_parts() -> anyhow::Result<()> {
        let messages = json!([
            {"role": "system", "content": "be kind"},
            {"role": "user", "content": format!("{MARK}one")},
            {"role": "assistant", "content": "Answer 1: one"},
            {"role": "user", "content": [{"type": "text", "text": format!("[a time] {MARK}two\n<<<where it runs>>>")}]},
            {"role": "user", "content": "Runtime: agent=main"},
        ]);
        let (status, whole) = ask(KEY, json!({"messages": messages})).await?;
        let whole: Value = serde_json::from_str(&whole)?;
        assert_eq!((status, &whole["choices"][0]["message"]["content"]), (StatusCode::OK, &json!(answer(2, "two"))));
        let (_, parts) = ask(KEY, json!({"messages": messages, "stream": true})).await?;
        assert!(parts.contains(r#""content":"Answer 2: two""#) && parts.ends_with("data: [DONE]\n\n"), "{parts}");
        let (status, _) = ask("another", json!({"messages": messages})).await?;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        Ok(())
    }
}
