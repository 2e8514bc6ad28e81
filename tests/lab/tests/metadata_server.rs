//! The metadata server as its clients see it, byte by byte over loopback.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use openclaw_lab::metadata_server::{
    ACCESS_TOKEN, Disk, FaultChange, Instance, Level, MAX_VALUE, Metadata, Server, control,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const FLAVOR: &str = "Metadata-Flavor: Google\r\n";
const V1: &str = "/computeMetadata/v1";
const HTML: &str = "text/html; charset=UTF-8";

/// One answer as it came over the wire, up to the end of the connection.
#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then_some(value)
        })
    }

    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

async fn send(address: SocketAddr, method: &str, path: &str, headers: &str, body: &str) -> Reply {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Reply { status, head: head.into(), body: body.into() }
}

async fn get(address: SocketAddr, path: &str) -> Reply {
    send(address, "GET", &format!("{V1}{path}"), FLAVOR, "").await
}

fn instance() -> Instance {
    let mut instance = Instance::default();
    instance.attributes.insert("enable-guest-attributes".into(), "TRUE".into());
    instance.attributes.insert("someKey".into(), "a\nb".into());
    instance.disks.push(Disk::new(1, "openclaw-data"));
    instance.tags = vec!["web".into(), "db".into()];
    instance
}

fn set_fault(server: &Server, spec: &str) {
    server.fault(spec.parse().unwrap());
}

#[tokio::test]
async fn every_answer_has_the_documented_headers() {
    let (_, address) = Server::spawn(instance()).await.unwrap();
    for path in ["/", "/computeMetadata/v1/instance/id", "/computeMetadata/v1/instance/nothing"] {
        let reply = send(address, "GET", path, FLAVOR, "").await;
        for (name, value) in [
            ("Metadata-Flavor", "Google"),
            ("Server", "Metadata Server for VM"),
            ("X-XSS-Protection", "0"),
            ("X-Frame-Options", "SAMEORIGIN"),
        ] {
            assert_eq!(reply.header(name), Some(value), "{path}");
        }
        let etag = reply.header("ETag");
        assert_eq!(etag.is_some(), reply.status == 200, "{path}");
        assert!(etag.is_none_or(|etag| etag.len() == 16 && etag.bytes().all(|byte| byte.is_ascii_hexdigit())));
    }
}

#[tokio::test]
async fn only_direct_requests_with_the_flavor_are_answered() {
    let (_, address) = Server::spawn(instance()).await.unwrap();
    let id = "/computeMetadata/v1/instance/id";
    for (path, headers, status, body) in [
        ("/", "", 200, "computeMetadata/\n"),
        ("/", "X-Forwarded-For: 1.2.3.4\r\n", 403, "Forbidden"),
        (id, "", 403, r#"Missing required header "Metadata-Flavor": "Google""#),
        (id, "Metadata-Flavor: google\r\n", 403, "Missing required header"),
        (id, "Metadata-Flavor: Google\r\nX-Forwarded-For: 1.2.3.4\r\n", 403, "Forbidden"),
        (id, "metadata-flavor: Google\r\nX-Forwarded-For:\r\n", 200, "6418230159378921067"),
    ] {
        let reply = send(address, "GET", path, headers, "").await;
        assert_eq!(reply.status, status, "{path} {headers}");
        assert!(reply.body.contains(body), "{path} {headers}: {}", reply.body);
        assert_eq!(reply.header("Content-Type"), Some(if status == 200 { "application/text" } else { HTML }));
    }
}

#[tokio::test]
async fn paths_lead_to_values_and_listings() {
    let (_, address) = Server::spawn(instance()).await.unwrap();
    let (text, json) = ("application/text", "application/json");
    for (path, status, content_type, body) in [
        ("/", 200, text, "instance/\noslogin/\nproject/\nuniverse/\n"),
        ("/instance/id", 200, text, "6418230159378921067"),
        ("/instance/id/", 404, HTML, ""),
        ("/instance/id?alt=json", 200, json, "6418230159378921067"),
        ("/instance/name?alt=json", 200, json, "\"openclaw\""),
        ("/instance/name?alt=xml", 400, HTML, ""),
        ("/instance/zone", 200, text, "projects/708288290784/zones/us-central1-a"),
        ("/instance/machine-type", 200, text, "projects/708288290784/machineTypes/e2-small"),
        ("/instance/machineType", 404, HTML, ""),
        ("/instance/tags", 200, json, r#"["web","db"]"#),
        ("/instance/attributes/", 200, text, "enable-guest-attributes\nsomeKey\n"),
        ("/instance/attributes/someKey", 200, text, "a\nb"),
        ("/instance/attributes/some-key", 404, HTML, ""),
        ("/instance/disks/", 200, text, "0/\n1/\n"),
        ("/instance/disks/1/", 200, text, "device-name\nindex\ninterface\nmode\ntype\n"),
        ("/instance/disks/1/device-name", 200, text, "openclaw-data"),
        ("/instance/disks/2/", 404, HTML, ""),
        ("/instance/disks/1/?recursive=True&alt=text", 200, text, "device-name openclaw-data\nindex 1\n"),
        ("/instance/network-interfaces/0/dns-servers", 200, text, "169.254.169.254\n"),
        ("/instance/scheduling/on-host-maintenance", 200, text, "MIGRATE"),
        ("/instance/service-accounts/default/", 200, text, "aliases\nemail\nidentity\nscopes\ntoken\n"),
        ("/instance/service-accounts/default/identity", 400, HTML, "non-empty audience parameter required"),
        ("/instance/service-accounts/default/identity?audience=A", 200, "text/html", "openclaw-lab-identity-for:A"),
        ("/instance/service-accounts/other/token", 404, HTML, ""),
        ("/project/project-id", 200, text, "openclaw-lab"),
        ("/project/numeric-project-id", 200, text, "708288290784"),
        ("/universe/universe-domain", 404, HTML, ""),
        ("/instance/attributes/someKey?wait_for_change=true&timeout_sec=x", 400, HTML, ""),
    ] {
        let reply = get(address, path).await;
        assert_eq!((reply.status, reply.header("Content-Type")), (status, Some(content_type)), "{path}");
        let wanted =
            if status == 200 && !path.contains("alt=text") { reply.body == body } else { reply.body.contains(body) };
        assert!(wanted, "{path}: {}", reply.body);
    }
}

#[tokio::test]
async fn directories_without_slash_redirect() {
    let (_, address) = Server::spawn(instance()).await.unwrap();
    for (path, location) in [
        ("/computeMetadata", "http://lab/computeMetadata/"),
        ("/computeMetadata/v1", "http://lab/computeMetadata/v1/"),
        ("/computeMetadata/v1/instance", "http://lab/computeMetadata/v1/instance/"),
        ("/computeMetadata/v1/instance/disks/0?alt=json", "http://lab/computeMetadata/v1/instance/disks/0/?alt=json"),
        ("/computeMetadata/v1/instance/guest-attributes", "http://lab/computeMetadata/v1/instance/guest-attributes/"),
    ] {
        let reply = send(address, "GET", path, FLAVOR, "").await;
        assert_eq!((reply.status, reply.header("Location")), (301, Some(location)));
    }
}

#[tokio::test]
async fn recursion_gives_the_tree_in_camel_case() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    for recursive in ["true", "True", "TRUE"] {
        let reply = get(address, &format!("/?recursive={recursive}&alt=json")).await;
        assert_eq!(reply.header("Content-Type"), Some("application/json"));
        assert!(reply.body.contains(r#""id":6418230159378921067,"#));
        let tree = reply.json();
        assert_eq!(tree["instance"]["disks"][1]["deviceName"], "openclaw-data");
        assert_eq!(tree["instance"]["attributes"], json!({"enable-guest-attributes": "TRUE", "someKey": "a\nb"}));
        assert_eq!(tree["instance"]["guestAttributes"], json!({}));
        assert_eq!(tree["instance"]["serviceAccounts"]["default"]["token"], Value::Null);
        assert_eq!(serde_json::from_value::<Metadata>(tree).unwrap(), server.metadata());
    }
    let token = get(address, "/instance/service-accounts/default/token?scopes=a,b").await.json();
    assert_eq!((&token["access_token"], &token["token_type"]), (&json!(ACCESS_TOKEN), &json!("Bearer")));
    server.update(|metadata| metadata.universe.universe_domain = Some("example.goog".into()));
    let universe = get(address, "/universe/universe-domain").await;
    assert_eq!((universe.header("Content-Type"), universe.body.as_str()), (Some("text/plain"), "example.goog"));
}

#[tokio::test]
async fn guest_attributes_are_written_read_and_deleted() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let too_long = "x".repeat(MAX_VALUE + 1);
    let long_key = format!("/openclaw/{}", "k".repeat(128));
    for (method, path, body, status, answer) in [
        ("GET", "/", "", 200, ""),
        ("GET", "/openclaw/", "", 404, ""),
        ("PUT", "/openclaw/state", "starting", 200, ""),
        ("PUT", "/openclaw/state", "ready", 200, ""),
        ("PUT", "/openclaw/fullName", "", 200, ""),
        ("PUT", "/hostkeys/ssh-ed25519", "AAAA", 200, ""),
        ("GET", "/", "", 200, "hostkeys/\nopenclaw/\n"),
        ("GET", "/openclaw/", "", 200, "fullName\nstate\n"),
        ("GET", "/openclaw/state", "", 200, "ready"),
        ("GET", "/openclaw/fullName", "", 200, ""),
        (
            "GET",
            "/?recursive=true",
            "",
            200,
            r#"{"hostkeys":{"ssh-ed25519":"AAAA"},"openclaw":{"fullName":"","state":"ready"}}"#,
        ),
        ("PUT", "/openclaw/big", &too_long, 400, ""),
        ("PUT", "/openclaw/a%20b", "x", 400, ""),
        ("PUT", "/openclaw/", "x", 400, ""),
        ("PUT", "/openclaw/a/b", "x", 400, ""),
        ("PUT", &long_key, "x", 400, ""),
        ("POST", "/openclaw/state", "x", 405, ""),
        ("DELETE", "/hostkeys/ssh-ed25519", "", 200, ""),
        ("DELETE", "/hostkeys/ssh-ed25519", "", 404, ""),
        ("GET", "/hostkeys/ssh-ed25519", "", 404, ""),
        ("GET", "/", "", 200, "openclaw/\n"),
    ] {
        let path = format!("{V1}/instance/guest-attributes{path}");
        let reply = send(address, method, &path, FLAVOR, body).await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert!(status != 200 || reply.body == answer, "{method} {path}: {}", reply.body);
    }
    assert_eq!(json!(server.guest_attributes("openclaw")), json!({"fullName": "", "state": "ready"}));
    let outside = send(address, "PUT", "/computeMetadata/v1/instance/attributes/x", FLAVOR, "x").await;
    let bare = send(address, "PUT", "/computeMetadata/v1/instance/guest-attributes/openclaw/state", "", "x").await;
    assert_eq!((outside.status, bare.status), (405, 403));
    server.set_instance_id(1);
    assert!(server.guest_attributes("openclaw").is_empty());
}

#[tokio::test]
async fn guest_attributes_need_to_be_enabled() {
    let path = "/computeMetadata/v1/instance/guest-attributes/openclaw/state";
    for (instance_value, project_value, status) in
        [(None, None, 403), (Some("TRUE"), None, 200), (None, Some("true"), 200), (Some("FALSE"), Some("TRUE"), 403)]
    {
        let (server, address) = Server::spawn(Instance::default()).await.unwrap();
        for (level, value) in [(Level::Instance, instance_value), (Level::Project, project_value)] {
            if let Some(value) = value {
                server.set_attribute(level, "enable-guest-attributes", value).unwrap();
            }
        }
        for method in ["PUT", "GET", "DELETE"] {
            let reply = send(address, method, path, FLAVOR, "").await;
            assert_eq!(reply.status, status, "{method} {instance_value:?} {project_value:?}");
            assert!(status == 200 || reply.body == "Guest attributes endpoint access is disabled.");
        }
    }
}

#[tokio::test]
async fn waiting_ends_with_the_change_or_the_timeout() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let key = "/instance/attributes/someKey";
    let etag = get(address, key).await.header("ETag").unwrap().to_owned();
    let wait = |query: &str| {
        let path = format!("{key}?wait_for_change=true{query}");
        async move { get(address, &path).await }
    };
    assert_eq!(wait("&timeout_sec=60&last_etag=NONE").await.body, "a\nb");
    let begin = Instant::now();
    let unchanged = wait(&format!("&timeout_sec=1&last_etag={etag}")).await;
    assert!((1..5).contains(&begin.elapsed().as_secs()));
    assert_eq!((unchanged.body.as_str(), unchanged.header("ETag")), ("a\nb", Some(etag.as_str())));

    let waiting = tokio::spawn(wait(&format!("&last_etag={etag}")));
    while server.requests().last().unwrap().status.is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.set_attribute(Level::Instance, "unrelated", "x").unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    server.set_attribute(Level::Instance, "someKey", "changed").unwrap();
    assert_eq!(timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().body, "changed");

    let waiting = tokio::spawn(wait(""));
    while server.requests().last().unwrap().status.is_some() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.unset_attribute(Level::Instance, "someKey");
    assert_eq!(timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap().status, 404);
}

#[tokio::test]
async fn faults_reach_the_wire() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let name = "/instance/name";

    set_fault(&server, "status=503,times=2");
    let statuses = [get(address, name).await.status, get(address, name).await.status, get(address, name).await.status];
    assert_eq!(statuses, [503, 503, 200]);

    for (spec, flavor) in [("no-flavor,times=1", None), ("flavor=Other,times=1", Some("Other"))] {
        set_fault(&server, spec);
        let reply = get(address, name).await;
        assert_eq!((reply.status, reply.header("Metadata-Flavor"), reply.body.as_str()), (200, flavor, "openclaw"));
    }

    for (bytes, announced, sent) in [(3, "8", "ope"), (0, "8", ""), (20, "21", "openclaw")] {
        set_fault(&server, &format!("truncate={bytes},times=1"));
        let reply = get(address, name).await;
        assert_eq!((reply.status, reply.header("Content-Length"), reply.body.as_str()), (200, Some(announced), sent));
    }

    set_fault(&server, "delay=300ms,times=1");
    let begin = Instant::now();
    assert_eq!(get(address, name).await.body, "openclaw");
    assert!(begin.elapsed() >= Duration::from_millis(300));

    set_fault(&server, "status=500,for=100ms");
    assert_eq!(get(address, name).await.status, 500);
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert_eq!(get(address, name).await.status, 200);
}

#[tokio::test]
async fn faults_hit_only_what_they_name() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let path = "/computeMetadata/v1/instance/guest-attributes/openclaw/state";
    set_fault(&server, &format!("path={V1}/instance/guest-attributes/,method=PUT,status=403"));
    assert_eq!(send(address, "PUT", path, FLAVOR, "x").await.status, 403);
    assert_eq!(send(address, "GET", path, FLAVOR, "").await.status, 404, "the write must not have happened");
    set_fault(&server, "clear");
    set_fault(&server, &format!("path={V1}/instance/guest-attributes/,rate=2/1m,status=429"));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(send(address, "PUT", path, FLAVOR, "x").await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    assert_eq!(get(address, "/instance/name").await.status, 200);
}

#[tokio::test]
async fn a_black_hole_accepts_and_never_answers() {
    let (server, address) = Server::spawn(instance()).await.unwrap();
    set_fault(&server, "blackhole");
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n").await.unwrap();
    let answer = timeout(Duration::from_millis(300), stream.read_u8()).await;
    assert!(answer.is_err(), "there was an answer or an end: {answer:?}");
    let requests = server.requests();
    let fault: FaultChange = "blackhole".parse().unwrap();
    assert_eq!((requests[0].status, requests[0].fault.clone().map(FaultChange::Add)), (None, Some(fault)));
    set_fault(&server, "clear");
    assert_eq!(send(address, "GET", "/", "", "").await.status, 200);
}

#[tokio::test]
async fn every_request_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("requests.jsonl");
    let (server, address) = Server::spawn(instance()).await.unwrap();
    server.log_to(&file).unwrap();
    set_fault(&server, "method=PUT,status=503,times=1");
    let path = "/computeMetadata/v1/instance/guest-attributes/openclaw/state?x=1";
    send(address, "PUT", path, "Metadata-Flavor: Google\r\nUser-Agent: probe/1\r\n", "ready").await;
    send(address, "GET", "/", "", "").await;
    let lines: Vec<Value> =
        std::fs::read_to_string(&file).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(json!(lines), json!(server.requests()));
    let mut put = lines[0].clone();
    let time = put["time"].take();
    assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    assert_eq!(
        put,
        json!({
            "time": null, "host": "metadata", "method": "PUT", "path": path, "status": 503, "user_agent": "probe/1",
            "remote": "127.0.0.1", "body": "ready", "fault": "method=PUT,times=1,status=503",
        })
    );
}

#[tokio::test]
async fn files_are_served_without_metadata_rules() {
    let dir = tempfile::tempdir().unwrap();
    let content = "0123456789".repeat(100_000);
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/script"), &content).unwrap();
    std::fs::write(dir.path().join("empty"), "").unwrap();
    let server = Server::new(instance());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = server.files_router(dir.path().join("sub"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    for (method, path, status, length, body) in [
        ("GET", "/script", 200, "1000000", content.as_str()),
        ("HEAD", "/script", 200, "1000000", ""),
        ("GET", "/../empty", 404, "0", ""),
        ("GET", "//etc/hostname", 404, "0", ""),
        ("GET", "/", 404, "0", ""),
        ("PUT", "/script", 405, "0", ""),
    ] {
        let reply = send(address, method, path, "", "").await;
        assert_eq!((reply.status, reply.header("Content-Length")), (status, Some(length)), "{method} {path}");
        assert!(reply.body == body, "{method} {path}");
    }
    assert!(server.requests().iter().all(|request| request.host == "files" && request.status.is_some()));
}

#[tokio::test]
async fn another_process_controls_a_running_server() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let client = control::Client::new(&socket).unwrap();
    assert!(client.requests().await.is_err(), "nobody listens yet");
    std::fs::write(&socket, "left behind").unwrap();
    let (controlled, path) = (server.clone(), socket.clone());
    tokio::spawn(async move { control::serve(controlled, &path).await });
    while TcpStream::connect(address).await.is_err() || !std::fs::metadata(&socket).is_ok_and(|file| !file.is_file()) {
        tokio::task::yield_now().await;
    }

    client.set_attribute(Level::Instance, "someKey", "new").await.unwrap();
    client.set_attribute(Level::Project, "shared", "yes").await.unwrap();
    client.unset_attribute(Level::Instance, "enable-guest-attributes").await.unwrap();
    client.set_disks(vec![Disk::new(0, "boot")]).await.unwrap();
    client.set_instance_id(u64::MAX).await.unwrap();
    let metadata = server.metadata();
    assert_eq!(json!(metadata.instance.attributes), json!({"someKey": "new"}));
    assert_eq!(json!(metadata.project.attributes), json!({"shared": "yes"}));
    assert_eq!((metadata.instance.disks.len(), metadata.instance.id), (1, u64::MAX));
    assert_eq!(get(address, "/instance/id").await.body, u64::MAX.to_string());
    let refused = client.set_attribute(Level::Instance, "no spaces", "").await.unwrap_err();
    assert!(refused.to_string().contains("\"no spaces\""), "{refused:#}");

    client.fault("status=503,times=1".parse().unwrap()).await.unwrap();
    assert_eq!(get(address, "/instance/id").await.status, 503);
    client.fault("blackhole".parse().unwrap()).await.unwrap();
    client.fault(FaultChange::Clear).await.unwrap();
    assert_eq!(client.requests().await.unwrap(), server.requests());
}

#[tokio::test]
async fn waiting_for_a_guest_attribute_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("control.sock");
    let (server, address) = Server::spawn(instance()).await.unwrap();
    let path = socket.clone();
    tokio::spawn(async move { control::serve(server, &path).await });
    while !socket.exists() {
        tokio::task::yield_now().await;
    }
    let client = control::Client::new(&socket).unwrap();
    let wait = |after, time| client.wait_guest_attribute("openclaw", "result", after, Duration::from_millis(time));
    let write = |method, value| {
        send(address, method, "/computeMetadata/v1/instance/guest-attributes/openclaw/result", FLAVOR, value)
    };

    let nothing = wait(0, 50).await.unwrap();
    assert_eq!((nothing.value, nothing.revision), (None, 0));
    let (first, _) = tokio::join!(wait(0, 5000), write("PUT", "ready"));
    assert_eq!(first.unwrap().value.as_deref(), Some("ready"));
    write("DELETE", "").await;
    write("PUT", "ready").await;
    let same_again = wait(1, 5000).await.unwrap();
    assert_eq!((same_again.value.as_deref(), same_again.revision), (Some("ready"), 3));
    assert_eq!(json!(client.guest_attributes("openclaw").await.unwrap()), json!({"result": "ready"}));
}
