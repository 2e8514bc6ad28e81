//! The operator's settings in `openclaw.json`: applied by the image's own `config patch`, taken back when the gateway
//! refuses them or does not come up with them.

use anyhow::{Error, Result, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::merge::{Merged, decide, diff, paths, set};
use super::one_off::{self, Edited};
use super::openclaw_json;
use super::secrets;
use super::spec::Inputs;
use super::swap::Undone;
use super::{Gateway, Secrets, stop_for_maintenance};
use crate::config::{GatewayConfig, SettingsPatch};
use crate::error::{Code, Diagnosis, RUN_AGAIN, code_of, what};
use crate::host::{Access, Host, json_file};
use crate::image::Image;
use crate::lock::RunLock;
use crate::paths::STATE_ALIAS;
use crate::report::Ready;
use crate::state::{DataDir, Owned, OwnedSettings, Record, RefusedSettings, settings_trial};
use crate::text::hex;

/// What a gateway did not come up with, for whoever wants it back.
const GIVEN_UP: &str = "openclaw.json.given-up";

/// Where it is written down what the operator owns, before it is changed.
#[derive(Debug)]
pub struct Ownership<'a> {
    /// The record of the state.
    pub record: &'a mut Record,
    /// Held: the record is written.
    pub lock: &'a RunLock,
}

/// The settings before those with which the gateway is started; gone when it is ready.
#[derive(Serialize, Deserialize)]
struct Trial {
    /// `openclaw.json`, whole.
    text: String,
    /// `.env`, whole: `openclaw.json` may refer to its lines.
    env: String,
    owned: Vec<Owned>,
}

/// Why settings are not applied whose taking back could not be promised.
const TOO_MUCH: &str =
    "openclaw.json holds more at the paths that they set than can be kept for the day on which they go";

/// What is to be done about `openclaw.json`.
#[derive(Debug)]
pub(super) struct Plan {
    /// What it is, without a file what it will be at first.
    base: Value,
    /// Whether there is none.
    is_new: bool,
    /// With what the gateway needs, and nothing of the operator's new settings.
    plain: Value,
    merged: Merged,
    /// Why the operator's settings are not applied.
    refusal: Option<Error>,
}

impl Plan {
    /// `document`: the file, `None` when there is none. Without `ownership` the operator's settings stay as they are.
    pub(super) fn of(
        gateway: &Gateway<'_>,
        document: Option<&Value>,
        image: &Image,
        secrets: &Secrets,
        ownership: Option<&Ownership<'_>>,
    ) -> Self {
        let settings = ownership.map(|ownership| &ownership.record.settings);
        let owned = settings.map_or(&[][..], |settings| &settings.owned);
        let is_new = document.is_none();
        let with_missing = |mut document: Value| {
            for (path, value) in openclaw_json::missing(Some(&document), gateway.config) {
                set(&mut document, &path, value);
            }
            document
        };
        let plain = with_missing(document.cloned().unwrap_or_else(|| json!({})));
        let base = document.cloned().unwrap_or_else(|| plain.clone());
        let patch = &gateway.config.settings;
        let leaves = patch.leaves();
        let has_include = leaves.iter().any(|leaf| openclaw_json::has_include(&base, &leaf.path))
            || owned.iter().any(|owned| openclaw_json::has_include(&base, &owned.path));
        if has_include && patch.is_empty() {
            gateway.host.warn(
                "openclaw.json takes parts of itself from other files ($include), and cannot be merged: what attributes that \
                 are gone now had set in it stays",
            );
        }
        let refusal = settings.filter(|_| !patch.is_empty()).and_then(|settings| {
            if has_include {
                return Some(refused(
                    patch,
                    "openclaw.json takes parts of itself from other files ($include), and cannot be merged",
                ));
            }
            let digest = digest(gateway.config, image, secrets);
            let known = settings.refused.as_ref().filter(|refused| refused.digest == digest);
            known.map(|known| refused(patch, &format!("{} (not tried again)", known.why)))
        });
        let decided = (ownership.is_some() && refusal.is_none() && !has_include).then(|| decide(&base, patch, owned));
        let is_too_much = matches!(decided, Some(None));
        let refusal = refusal.or_else(|| is_too_much.then(|| refused(patch, TOO_MUCH)));
        let merged = match decided.flatten() {
            Some(merged) => Merged { document: with_missing(merged.document), ..merged },
            None => Merged { document: plain.clone(), owned: owned.to_vec() },
        };
        Self { base, is_new, plain, merged, refusal }
    }

    /// What `openclaw.json` will be.
    pub(super) fn document(&self) -> &Value {
        if self.refusal.is_some() { &self.plain } else { &self.merged.document }
    }

    /// Whether the gateway's port will have TLS.
    pub(super) fn has_tls(&self) -> bool {
        openclaw_json::has_tls(Some(self.document()))
    }

    /// Whether there was no `openclaw.json`: a gateway that runs has started with another one.
    pub(super) fn is_new(&self) -> bool {
        self.is_new
    }

    /// Whether [`Gateway::edit`] has made of `openclaw.json` what the operator wants, and it was not that before.
    pub(super) fn is_changed(&self) -> bool {
        self.refusal.is_none() && self.base != self.merged.document
    }

    /// Why the operator's settings are not applied.
    pub(super) fn refusal(self) -> Option<Error> {
        self.refusal
    }
}

impl Gateway<'_> {
    /// Makes `openclaw.json` what the plan says, while the gateway runs or not. What the image's own tool refuses is
    /// left out and noted in the plan.
    pub(super) async fn edit(
        &self,
        inputs: &Inputs<'_>,
        secrets: &Secrets,
        plan: &mut Plan,
        ownership: Option<&mut Ownership<'_>>,
    ) -> Result<Edited> {
        if plan.is_new {
            openclaw_json::create(self.host, self.data, &plan.base).await?;
        }
        let Some(edits) = diff(&plan.base, &plan.merged.document) else {
            if let Some(ownership) = ownership.filter(|_| plan.refusal.is_none()) {
                let owned = std::mem::take(&mut plan.merged.owned);
                ownership.record.settings = OwnedSettings { owned, refused: None };
            }
            return Ok(Edited::Live);
        };
        let Some(ownership) = ownership else {
            return self.patch(inputs, secrets, &edits, &plan.merged.document).await;
        };
        let before = ownership.record.settings.clone();
        let is_plain = before.owned.is_empty() && plan.merged.owned.is_empty();
        let begun = !is_plain && self.begin_trial(ownership, plan).await?;
        match one_off::patch(self, inputs, secrets, &edits).await {
            Ok(edited) => {
                ownership.record.settings.owned.clone_from(&plan.merged.owned);
                self.verify(&edits, &plan.merged.document).await?;
                Ok(edited)
            }
            Err(error) if !is_plain && code_of(&error) == Code::GatewayRefused => {
                self.end_vain_trial(ownership, before, begun, true).await?;
                plan.refusal = Some(refused(&self.config.settings, &what(&error)));
                match diff(&plan.base, &plan.plain) {
                    Some(edits) => self.patch(inputs, secrets, &edits, &plan.plain).await,
                    None => Ok(Edited::Live),
                }
            }
            Err(error) => {
                if !is_plain {
                    let wrote_nothing = what(&error).contains(one_off::CHANGED);
                    self.end_vain_trial(ownership, before, begun, wrote_nothing).await?;
                }
                Err(error)
            }
        }
    }

    /// Has the image's own tool make the edits.
    async fn patch(&self, inputs: &Inputs<'_>, secrets: &Secrets, edits: &Value, desired: &Value) -> Result<Edited> {
        let edited = one_off::patch(self, inputs, secrets, edits).await?;
        self.verify(edits, desired).await.map(|()| edited)
    }

    /// A value that is still missing is only a warning: the gateway itself knows best whether it can start.
    async fn verify(&self, edits: &Value, desired: &Value) -> Result<()> {
        let Self { host, data, .. } = *self;
        openclaw_json::ensure_access(host, data).await?;
        let document = openclaw_json::read(host, data).await?.unwrap_or_default();
        match diff(&document, desired).and_then(|missing| kept_from(edits, &missing)) {
            None => host.changed(format!("set {} in openclaw.json", paths(edits))),
            Some(missing) => host.warn(format!(
                "the image's `config patch` reported success, but openclaw.json has another value at {}",
                paths(&missing)
            )),
        }
        Ok(())
    }

    /// Writes down what the file was, and until the trial has ended whose the paths are before it and after it: a cut
    /// forgets neither. False when an earlier trial was cut: what was there before that one is what the gateway was
    /// ready with.
    async fn begin_trial(&self, ownership: &mut Ownership<'_>, plan: &Plan) -> Result<bool> {
        let Self { host, data, .. } = *self;
        let former = std::mem::take(&mut ownership.record.settings);
        let begins = json_file::read::<Trial>(host, settings_trial(data)).await?.is_none();
        if begins {
            let (text, env) = (openclaw_json::text(host, data).await?, secrets::text(host, data).await?);
            let trial = Trial { text, env, owned: former.owned.clone() };
            json_file::write(host, settings_trial(data), &trial).await?;
        }
        let mut owned = plan.merged.owned.clone();
        let is_left = |old: &Owned| plan.merged.owned.iter().all(|new| new.path != old.path);
        owned.extend(former.owned.into_iter().filter(is_left));
        // Settings that were not tried have not changed what is known of others.
        let refused = former.refused.filter(|_| plan.refusal.is_some());
        ownership.record.settings = OwnedSettings { owned, refused };
        ownership.record.write(host, data, ownership.lock).await?;
        Ok(begins)
    }

    /// Forgets a trial that changed nothing: its text must not come back over what people write from now on. The tool
    /// has said that it wrote nothing, or the text tells. `begun`: the trial is this run's, and `before` what was known
    /// until then.
    async fn end_vain_trial(
        &self,
        ownership: &mut Ownership<'_>,
        before: OwnedSettings,
        begun: bool,
        wrote_nothing: bool,
    ) -> Result<()> {
        let Self { host, data, .. } = *self;
        let Some(trial) = json_file::read::<Trial>(host, settings_trial(data)).await? else { return Ok(()) };
        if begun && wrote_nothing || openclaw_json::text(host, data).await? == trial.text {
            ownership.record.settings = if begun { before } else { OwnedSettings { owned: trial.owned, ..before } };
            ownership.record.write(host, data, ownership.lock).await?;
            host.remove_file(settings_trial(data)).await?;
        }
        Ok(())
    }

    /// Waits until the gateway is ready, as [`Gateway::wait_settled`] does. When it does not become ready with the
    /// operator's new settings or with another container, it gets the former ones back; then the second value says why.
    pub async fn settle(
        &self,
        image: &Image,
        secrets: &Secrets,
        ownership: Ownership<'_>,
    ) -> Result<(Ready, Option<Error>)> {
        let Self { host, data, .. } = *self;
        let settled = self.wait_settled(image, secrets).await;
        let Some(trial) = json_file::read::<Trial>(host, settings_trial(data)).await? else {
            return match settled {
                Ok(ready) => Ok((ready, None)),
                Err(error) => self.keep_former(image, secrets, ownership, error).await,
            };
        };
        match settled {
            Ok(ready) => {
                host.remove_file(settings_trial(data)).await?;
                Ok((ready, None))
            }
            Err(error) => self.go_back(image, secrets, ownership, trial, error).await,
        }
    }

    /// The gateway with the container that came back, and why it had to. What did not come up is not tried again.
    async fn keep_former(
        &self,
        image: &Image,
        secrets: &Secrets,
        ownership: Ownership<'_>,
        error: Error,
    ) -> Result<(Ready, Option<Error>)> {
        let Some(known) = undone(&error) else { return Err(error) };
        let ready = match self.wait_ready(image, secrets).await {
            Ok(ready) => ready,
            Err(also) => {
                tracing::info!("neither with the former container: {also:#}");
                return Err(error);
            }
        };
        let refusal = refused_container(&known.why);
        ownership.record.refused_container = Some(known);
        ownership.record.write(self.host, self.data, ownership.lock).await?;
        Ok((ready, Some(refusal)))
    }

    async fn go_back(
        &self,
        image: &Image,
        secrets: &Secrets,
        ownership: Ownership<'_>,
        trial: Trial,
        error: Error,
    ) -> Result<(Ready, Option<Error>)> {
        let Self { host, engine, data, .. } = *self;
        host.progress("going back to the settings before");
        stop_for_maintenance(host, engine).await?;
        put_back(host, data, trial.text, trial.env).await?;
        let why = format!("the gateway did not come up with the settings: {}", what(&error));
        let refusal = if let Some(known) = undone(&error) {
            // The settings may be in order.
            let refusal = refused_container(&known.why);
            ownership.record.settings = OwnedSettings { owned: trial.owned, refused: None };
            ownership.record.refused_container = Some(known);
            refusal
        } else {
            let known = RefusedSettings { digest: digest(self.config, image, secrets), why: why.clone() };
            ownership.record.settings = OwnedSettings { owned: trial.owned, refused: Some(known) };
            refused(&self.config.settings, &why)
        };
        ownership.record.write(host, data, ownership.lock).await?;
        host.remove_file(settings_trial(data)).await?;
        let back = async {
            self.ensure_unless(ownership.record.refused_container.as_ref(), image, secrets, None).await?;
            self.wait_settled(image, secrets).await
        };
        match back.await {
            Ok(ready) => Ok((ready, Some(refusal))),
            // Neither was what keeps it from coming up.
            Err(also) => {
                ownership.record.settings.refused = None;
                ownership.record.refused_container = None;
                ownership.record.write(host, data, ownership.lock).await?;
                tracing::info!("neither with the settings before: {also:#}");
                Err(error)
            }
        }
    }
}

/// Undoes a trial whose container did not start. The former one comes back with what it was ready with; and from now on
/// people write, over which an old trial must not come back.
pub(super) async fn undo_trial(host: &Host, data: &DataDir, ownership: Ownership<'_>) -> Result<()> {
    let Some(trial) = json_file::read::<Trial>(host, settings_trial(data)).await? else { return Ok(()) };
    put_back(host, data, trial.text, trial.env).await?;
    ownership.record.settings.owned = trial.owned;
    ownership.record.write(host, data, ownership.lock).await?;
    host.remove_file(settings_trial(data)).await.map(drop)
}

/// Puts the texts of `openclaw.json` and `.env` in their places; what the first was is kept.
async fn put_back(host: &Host, data: &DataDir, text: String, env: String) -> Result<()> {
    if let Ok(given_up) = openclaw_json::text(host, data).await {
        host.ensure_file(data.records.join(GIVEN_UP), given_up, Access::root(0o600)).await?;
    }
    secrets::replace(host, data, env).await?;
    openclaw_json::replace(host, data, text).await
}

/// What is remembered of a container that gave way to the former one, if it is known that an attribute is to blame.
fn undone(error: &Error) -> Option<RefusedSettings> {
    let Undone { fingerprint, attributes } = error.downcast_ref()?;
    let why = format!("the gateway did not come up with {}: {}", attributes.join(", "), what(error));
    (!attributes.is_empty()).then(|| RefusedSettings { digest: fingerprint.clone(), why })
}

/// What is wrong beyond the attributes may have been mended: nothing tells.
const TRY_AGAIN: &str = " To have the same value tried again, remove it, run that, and set it again.";

/// The error of settings that are not applied.
fn refused(settings: &SettingsPatch, why: &str) -> Error {
    let attributes = settings.attributes();
    let (doing, correct) = if settings.is_empty() {
        let doing = "taking back what attributes had set in openclaw.json".to_owned();
        (doing, format!("Correct openclaw.json in the state directory {STATE_ALIAS} as the message says"))
    } else {
        let correct = format!(
            "Correct or remove {attributes} among the attributes, or what else the message names in openclaw.json in the \
             state directory {STATE_ALIAS}"
        );
        (format!("applying {attributes}"), correct)
    };
    let again = if settings.is_empty() { "" } else { TRY_AGAIN };
    let remedy = format!("The gateway runs with the settings before. {correct}, then run `{RUN_AGAIN}`.{again}");
    anyhow!("{why}").context(doing).context(Diagnosis { code: Code::ConfigRefused, remedy })
}

/// The error of a container that gave way to the former one.
pub(super) fn refused_container(why: &str) -> Error {
    let remedy = format!("Correct or remove the attribute, then run `{RUN_AGAIN}`.{TRY_AGAIN}");
    anyhow!("{why}")
        .context("changing the gateway's container")
        .context(Diagnosis { code: Code::ConfigRefused, remedy })
}

/// Of these settings for this version of the gateway, with the secrets and the time that it gets.
fn digest(config: &GatewayConfig, image: &Image, secrets: &Secrets) -> String {
    let (settings, time) = (config.settings.value(), config.ready_timeout.as_secs());
    hex(Sha256::digest(format!("{} {settings} {time} {}", image.version, secrets.digest)))
}

/// Of what differs from the plan only that which was asked for: the image's tool adds blocks of its own.
fn kept_from(edits: &Value, missing: &Value) -> Option<Value> {
    let (Value::Object(edits), Value::Object(missing)) = (edits, missing) else { return Some(missing.clone()) };
    let both = missing.iter().filter_map(|(key, missing)| {
        let kept = kept_from(edits.get(key)?, missing)?;
        Some((key.clone(), kept))
    });
    let both: serde_json::Map<_, _> = both.collect();
    (!both.is_empty()).then_some(Value::Object(both))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn paths_and_what_is_missing_of_them_are_named_without_values() {
        let edits = json!({"a": {"b": 1, "x/y": {}}, "c": null, "d": [{"e": "hunter2"}]});
        assert_eq!(paths(&edits), r#"a.b, a["x/y"], c, d"#);
        let cases = [
            (json!({"meta": null}), None),
            (json!({"a": {"b": 2, "z": null}, "meta": null}), Some("a.b")),
            (json!({"d": [1], "c": null}), Some("c, d")),
        ];
        for (missing, expected) in cases {
            assert_eq!(kept_from(&edits, &missing).map(|kept| paths(&kept)).as_deref(), expected, "{missing}");
        }
        let attributes = [("openclaw-config".to_owned(), "{a: 1}".to_owned())].into();
        let settings = Config::from_attributes(&attributes).map(|(config, _)| config.gateway.settings);
        let why = "logging.level: Invalid input";
        for (settings, begins, has, ends) in [
            (
                settings.unwrap_or_default(),
                "applying openclaw-config: ",
                "openclaw-config among the attributes, or",
                "set it again.",
            ),
            (
                SettingsPatch::default(),
                "taking back what attributes had set in openclaw.json: ",
                "Correct openclaw.json",
                "boot`.",
            ),
        ] {
            let sentence = crate::error::one_line(&refused(&settings, why));
            assert!(sentence.starts_with(&format!("{begins}{why}. The gateway runs")), "{sentence}");
            assert!(sentence.contains(has) && sentence.ends_with(ends), "{sentence}");
        }
    }

    #[test]
    fn what_was_refused_is_tried_again_with_other_secrets_or_more_time() {
        let reference: crate::reference::ImageReference = "x/y:1".parse().unwrap_or_else(|_| panic!("it is one"));
        let base = crate::reference::PinnedImage { reference: reference.clone(), digest: None };
        let image = Image { reference, base, id: "sha256:1".to_owned(), version: "1".into(), has_init: true };
        let secrets = |digest: &str| Secrets {
            token: crate::secret::Secret::new("t"),
            redaction: crate::secret::Redaction::default(),
            digest: digest.to_owned(),
        };
        let config = GatewayConfig::default();
        let slow = GatewayConfig { ready_timeout: config.ready_timeout * 2, ..config.clone() };
        let first = digest(&config, &image, &secrets("a"));
        assert_eq!(digest(&config, &image, &secrets("a")), first);
        assert_ne!(digest(&slow, &image, &secrets("a")), first);
        assert_ne!(digest(&config, &image, &secrets("b")), first);
    }

    /// Needs root to give the files to the gateway's user.
    #[tokio::test]
    async fn a_trial_whose_container_did_not_start_leaves_nothing_that_could_come_back() -> Result<()> {
        if !nix::unistd::geteuid().is_root() {
            return Ok(());
        }
        let root = tempfile::tempdir()?;
        let (host, data) = (Host::new(root.path()), DataDir::at("/data", false));
        let lock = RunLock::acquire(&root.path().join("lock")).await?;
        let owned = |path: &str| Owned { path: vec![path.to_owned()], depth: 1, value: None, is_object: false };
        let settings = OwnedSettings { owned: vec![owned("a"), owned("b")], refused: None };
        let mut record = Record { settings, ..Record::default() };
        for directory in [&data.state, &data.records] {
            std::fs::create_dir_all(host.path(directory))?;
        }
        openclaw_json::replace(&host, &data, "{b: 1}".to_owned()).await?;
        undo_trial(&host, &data, Ownership { record: &mut record, lock: &lock }).await?;
        assert_eq!((openclaw_json::text(&host, &data).await?.as_str(), record.settings.owned.len()), ("{b: 1}", 2));

        let trial = Trial { text: "{a: 1}".to_owned(), env: "A=1\n".to_owned(), owned: vec![owned("a")] };
        json_file::write(&host, settings_trial(&data), &trial).await?;
        undo_trial(&host, &data, Ownership { record: &mut record, lock: &lock }).await?;
        assert_eq!(openclaw_json::text(&host, &data).await?, "{a: 1}");
        assert_eq!(secrets::text(&host, &data).await?, "A=1\n");
        assert_eq!(std::fs::read_to_string(host.path(data.records.join(GIVEN_UP)))?, "{b: 1}");
        assert_eq!(Record::read(&host, &data).await?.settings.owned, [owned("a")]);
        assert!(!host.path(settings_trial(&data)).exists());
        Ok(())
    }
}
