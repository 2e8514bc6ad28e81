//! Reading the metadata through everything that can go wrong on the way.

use std::time::{Duration, Instant};

use openclaw_init::error::{Code, code_of, one_line};
use openclaw_init::metadata::{Answered, Client, WriteOutcome};
use openclaw_lab::metadata_server::{Disk, Instance, Level, Server};

const DEADLINE: Duration = Duration::from_secs(20);

async fn machine(faults: &[&str]) -> (Server, Client) {
    let mut instance = Instance { name: "claw-1".into(), ..Instance::default() };
    instance.disks.push(Disk::new(1, "openclaw-data"));
    instance.attributes.insert("openclaw-port".into(), "1".into());
    let (server, address) = Server::spawn(instance).await.unwrap();
    server.set_attribute(Level::Project, "openclaw-port", "2").unwrap();
    server.set_attribute(Level::Project, "openclaw-bind", "::1").unwrap();
    for fault in faults {
        server.fault(fault.parse().unwrap());
    }
    (server, Client::new(Some(&address.to_string())).unwrap())
}

#[tokio::test]
async fn what_heals_is_asked_again() {
    // Faults, and how many requests it takes: instance and project are one without any.
    let table: &[(&[&str], usize)] = &[
        (&[], 1),
        (&["status=503,times=2"], 3),
        (&["status=429,times=1", "status=408,times=1", "status=500,times=1"], 4),
        (&["truncate=10,times=1"], 2),
        (&["no-flavor,times=1"], 2),
        (&["flavor=Portal,times=1"], 2),
        (&["status=403,times=1"], 2),
        (&["blackhole,times=1"], 2),
    ];
    for (faults, requests) in table {
        let (server, client) = machine(faults).await;
        let instance = client.instance(DEADLINE).await.unwrap();
        assert_eq!(server.requests().len(), *requests, "{faults:?}");
        assert_eq!((instance.name.as_str(), instance.zone.as_str()), ("claw-1", "us-central1-a"));
        assert_eq!(instance.id, Instance::default().id, "a 64-bit id went through a float");
        assert_eq!(instance.disks[1].device_name, "openclaw-data");
        assert_eq!(instance.attributes.values["openclaw-port"], "1", "the instance wins");
        assert_eq!(instance.attributes.values["openclaw-bind"], "::1", "the project's");
        assert!(!instance.spot);
    }
}

#[tokio::test]
async fn the_account_is_known_with_its_scopes() {
    let (server, client) = machine(&["status=503,times=1"]).await;
    let account = client.service_account().await.unwrap().unwrap();
    assert!(
        account.email.ends_with("@developer.gserviceaccount.com") && !account.lacks_cloud_platform(),
        "{account:?}"
    );
    server.update(|metadata| metadata.instance.service_accounts.clear());
    assert_eq!(client.service_account().await.unwrap(), None);
    assert!(client.access_token().await.unwrap().is_none());
}

#[tokio::test]
async fn what_does_not_heal_ends_at_once_and_says_why() {
    let table = [
        ("status=404", 1, "no instance (404)"),
        ("status=301", 1, "a redirect, which is not followed"),
        ("status=400", 1, "400 Bad Request"),
        ("status=403", 2, "403 Forbidden"),
    ];
    for (fault, requests, reason) in table {
        let (server, client) = machine(&[fault]).await;
        let started = Instant::now();
        let error = client.instance(DEADLINE).await.unwrap_err();
        assert_eq!(code_of(&error), Code::MetadataUnreachable);
        assert!(one_line(&error).contains(reason), "{fault}: {}", one_line(&error));
        assert_eq!(server.requests().len(), requests, "{fault}");
        assert!(started.elapsed() < Duration::from_secs(5), "{fault} took {:?}", started.elapsed());
    }
}

#[tokio::test]
async fn the_deadline_holds_whatever_happens() {
    for fault in ["blackhole", "status=503", "no-flavor", "truncate=3"] {
        let (_server, client) = machine(&[fault]).await;
        let started = Instant::now();
        let error = client.instance(Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(code_of(&error), Code::MetadataUnreachable);
        assert!(started.elapsed() < Duration::from_millis(2500), "{fault} took {:?}", started.elapsed());
        let sentence = one_line(&error);
        assert!(sentence.contains("tries in") && sentence.contains("curl"), "{fault}: {sentence}");
    }
}

#[tokio::test]
async fn a_server_that_comes_late_is_found() {
    let (server, _) = machine(&[]).await;
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let client = Client::new(Some(&address.to_string())).unwrap();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        server.serve(listener).await
    });
    assert_eq!(client.instance(DEADLINE).await.unwrap().name, "claw-1");
}

#[tokio::test]
async fn guest_attributes_are_one_checked_request_each() {
    let (server, client) = machine(&[]).await;
    assert_eq!(client.put_guest_attribute("openclaw", "state", "x").await.unwrap(), WriteOutcome::Disabled);
    server.set_attribute(Level::Instance, "enable-guest-attributes", "TRUE").unwrap();
    assert_eq!(client.put_guest_attribute("openclaw", "state", "x").await.unwrap(), WriteOutcome::Done);
    assert_eq!(server.guest_attributes("openclaw")["state"], "x");
    for _ in 0..2 {
        assert_eq!(client.delete_guest_attribute("openclaw", "state").await.unwrap(), WriteOutcome::Done);
    }
    assert!(server.guest_attributes("openclaw").is_empty());
    server.fault("method=DELETE,status=405,times=1".parse().unwrap());
    assert_eq!(client.delete_guest_attribute("openclaw", "state").await.unwrap(), WriteOutcome::Unsupported);
    server.fault("status=503,times=1".parse().unwrap());
    client.put_guest_attribute("openclaw", "state", "x").await.unwrap_err();
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn a_preemption_is_seen_and_no_answer_is_none() {
    for (preempted, faults, expected) in [
        ("TRUE", &[][..], Some(true)),
        ("FALSE", &[], Some(false)),
        ("TRUE", &["path=/computeMetadata/v1/instance/preempted,status=404"], Some(false)),
        ("TRUE", &["no-flavor"], None),
    ] {
        let instance = Instance { preempted: preempted.into(), ..Instance::default() };
        let (server, address) = Server::spawn(instance).await.unwrap();
        for fault in faults {
            server.fault(fault.parse().unwrap());
        }
        let client = Client::new(Some(&address.to_string())).unwrap();
        assert_eq!(client.is_preempted().await.ok(), expected, "{preempted} {faults:?}");
    }
}

/// One request waits for an attribute that changes, wherever it is set, or a preemption, and for no report of ours.
#[tokio::test]
async fn a_change_ends_the_wait() {
    let (server, client) = machine(&[]).await;
    let Answered { etag, attributes, is_preempted } = client.wait_for_change(None, DEADLINE).await.unwrap();
    assert!(!is_preempted);
    assert_eq!(
        (attributes.values["openclaw-port"].as_str(), attributes.values["openclaw-bind"].as_str()),
        ("1", "::1")
    );

    assert!(attributes.own.contains("openclaw-port") && !attributes.own.contains("openclaw-bind"));

    let begun = Instant::now();
    server.set_attribute(Level::Instance, "enable-guest-attributes", "TRUE").unwrap();
    let etag = client.wait_for_change(Some(&etag), DEADLINE).await.unwrap().etag;
    let (waiting, change) = tokio::join!(client.wait_for_change(Some(&etag), Duration::from_secs(2)), async {
        client.put_guest_attribute("openclaw", "state", "ready").await.unwrap();
    });
    assert_eq!((waiting.unwrap().etag, change), (etag.clone(), ()), "our own report is no change");
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());

    let (waiting, ()) = tokio::join!(client.wait_for_change(Some(&etag), DEADLINE), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        server.set_attribute(Level::Project, "openclaw-bind", "127.0.0.1").unwrap();
    });
    assert_eq!(waiting.unwrap().attributes.values["openclaw-bind"], "127.0.0.1");
    assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());

    server.update(|metadata| metadata.instance.preempted = "TRUE".into());
    assert!(client.wait_for_change(Some(&etag), DEADLINE).await.unwrap().is_preempted);

    server.fault("truncate=10,times=1".parse().unwrap());
    client.wait_for_change(None, DEADLINE).await.unwrap_err();
}
