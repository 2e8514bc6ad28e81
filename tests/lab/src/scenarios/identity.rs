//! `openclaw-metadata-access=identity`: containers have one weaker account, and nothing else of the metadata server.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::rig::Rig;
use super::shield::{self, Cloud};
use crate::cache::Cache;
use crate::cloud::metadata_server::{ACCESS_TOKEN, IAM_CREDENTIALS_NAME, TOKEN_PREFIX};
use crate::cloud::network::{self, MACHINE, STORAGE};
use crate::cloud::real_clients::{self, IDENTITY_CLIENTS};

const ACCOUNT: &str = "agent@openclaw-lab.iam.gserviceaccount.com";
/// The VM's own.
const OWN: &str = "708288290784-compute@developer.gserviceaccount.com";

/// Asks for paths inside a container.
const ASK: &str = include_str!("../../scripts/identity/ask.sh");

/// What is refused, one path a line: the same as in the unit test.
const REFUSED: &str = include_str!("../../../fixtures/identity/refused.txt");

/// What is answered.
const ANSWERED: [&str; 7] = [
    "/",
    "/computeMetadata/v1/instance/zone",
    "/computeMetadata/v1/project/project-id",
    "/computeMetadata/v1/project/numeric-project-id",
    "/computeMetadata/v1/instance/service-accounts/?recursive=true",
    "/computeMetadata/v1/instance/service-accounts/default/token",
    "/computeMetadata/v1/instance/service-accounts/agent@openclaw-lab.iam.gserviceaccount.com/token",
];

const STARTED: &str = "docker inspect --format '{{.State.StartedAt}} {{.State.Status}}' openclaw-gateway";
const IMAGE: &str = "$(docker inspect -f '{{.Image}}' openclaw-gateway)";

/// The accounts of the lab's project, as files.
struct Accounts(PathBuf);

impl Accounts {
    fn put(&self, file: &str) -> Result<()> {
        let file = self.0.join(file);
        fs::create_dir_all(file.parent().context("a file without a directory")?).context("making an account")?;
        fs::write(&file, "").with_context(|| format!("writing {}", file.display()))
    }

    fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.0.join(file)).with_context(|| format!("removing {file}"))
    }
}

/// A machine whose containers have an account.
pub(super) struct Given(Cloud);

/// On a machine that is ready.
pub(super) fn give(rig: &Rig) -> Result<Given> {
    let accounts = Accounts(rig.machine()?.secrets().join("accounts"));
    real_clients::pack(&Cache::from_env()?, &rig.machine()?.files().join("clients.tar"))?;
    rig.shell(&format!("mkdir -p /root/clients && curl -fsS http://{STORAGE}/clients.tar | tar -xC /root/clients"))?;
    let cloud = Cloud::open(rig, IMAGE)?;
    let before = rig.shell(STARTED)?;
    refused(rig, &accounts).context("refusals")?;
    rig.boot(0)?.has(&["stage=shield status=ok", "result=ready"])?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    let unit = rig.shell("systemd-analyze verify openclaw-identity.service 2>&1 | grep openclaw || true")?;
    ensure!(unit.is_empty(), "systemd-analyze verify says {unit}");
    works(rig, "at first")?;
    ensure!(rig.shell(STARTED)? == before, "the gateway was touched");
    without_google(rig).context("without Google's IAM")?;
    for event in ["nft flush ruleset", "systemctl restart docker"] {
        rig.shell(event)?;
        rig.shell(shield::SETTLE)?;
        is_there(rig, &format!("after {event}"))?;
    }
    rig.shell("systemctl kill -s KILL openclaw-identity")?;
    let again = format!("for i in $(seq 60); do {TOKEN} | grep -q '^HTTP/1.1 200' && exit; sleep 1; done; exit 1");
    rig.shell(&again).context("nobody starts it again")?;
    // The lab's network outlives its machine; a VM's does not.
    rig.shell("systemctl stop openclaw-watch openclaw-shield; nft flush ruleset")?;
    Ok(Given(cloud))
}

impl Given {
    /// After a reboot; the machine is ready in the end, and as it was.
    pub(super) fn outlives_and_goes(self, rig: &Rig) -> Result<()> {
        shield::connect(rig)?;
        rig.shell(shield::SETTLE)?;
        works(rig, "after a reboot")?;
        switched_off(rig).context("switched off")?;
        self.0.close(rig)?;
        rig.shell("rm -r /root/clients").map(drop)
    }
}

/// Every refusal is told apart and names the command; containers get nothing, and the gateway that runs goes on.
fn refused(rig: &Rig, accounts: &Accounts) -> Result<()> {
    let fails = |parts: &[&str]| rig.boot(26).and_then(|output| output.has(parts).map(drop));
    rig.attribute(&format!("openclaw-metadata-account={ACCOUNT}"))?;
    rig.attribute("openclaw-metadata-access=identity")?;
    fails(&["Gaia id not found", &format!("`gcloud iam service-accounts describe {ACCOUNT}`")])?;
    accounts.put(&format!("{ACCOUNT}/denied"))?;
    let grant = format!(
        "`gcloud iam service-accounts add-iam-policy-binding {ACCOUNT} --member=serviceAccount:{OWN} \
         --role=roles/iam.serviceAccountTokenCreator`"
    );
    fails(&["Permission 'iam.serviceAccounts.getAccessToken' denied", &grant])?;
    let status = rig.shell(&format!("{TOKEN} || true"))?;
    ensure!(status.starts_with("HTTP/1.1 403") && !status.contains(OWN), "a refused token is {status}");
    accounts.remove(&format!("{ACCOUNT}/denied"))?;
    accounts.put("api-disabled")?;
    fails(&["gcloud services enable iamcredentials.googleapis.com --project=708288290784"])?;
    accounts.remove("api-disabled")?;
    rig.lab_ends(0, "metadata", &["scopes", "https://www.googleapis.com/auth/devstorage.read_only"])?;
    fails(&["gcloud compute instances set-service-account", "--scopes=cloud-platform"])?;
    rig.lab_ends(0, "metadata", &["scopes", "https://www.googleapis.com/auth/cloud-platform"])?;
    rig.attribute(&format!("openclaw-metadata-account={OWN}"))?;
    rig.boot(10)?.has(&["is the VM's own account"])?;
    rig.attribute(&format!("openclaw-metadata-account={ACCOUNT}"))
}

/// A token as the gateway's container gets it.
const TOKEN: &str = "docker exec openclaw-gateway curl -is -m 30 -H 'Metadata-Flavor: Google' \
    http://169.254.169.254/computeMetadata/v1/instance/service-accounts/default/token";

/// A token that is there outlives them; one that is not is no failure of a run.
fn without_google(rig: &Rig) -> Result<()> {
    let before = rig.shell(TOKEN)?;
    rig.lab_ends(0, "metadata", &["fault", "path=/v1/projects/-/serviceAccounts,status=503"])?;
    ensure!(
        rig.shell(TOKEN)?.lines().last().is_some_and(|line| token_in(line) == token_in(&before)),
        "it is forgotten"
    );
    let warned = format!("containers get no token of {ACCOUNT} for now");
    rig.boot(0)?.has(&[&warned, "changes=0", "result=ready"])?;
    rig.lab_ends(0, "metadata", &["fault", "clear"])?;
    let journal = rig.shell("journalctl --boot --no-pager --unit openclaw-identity")?;
    ensure!(journal.contains(&format!("a token of {ACCOUNT} for 172.17.0.")), "the journal is {journal}");
    ensure!(!journal.contains(TOKEN_PREFIX) && !journal.contains(ACCESS_TOKEN), "the journal has a token");
    Ok(())
}

fn token_in(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("\"access_token\":\"")?;
    rest.split_once('"').map(|(token, _)| token)
}

/// The same, and both clients find the account in both kinds of networks.
fn works(rig: &Rig, when: &str) -> Result<()> {
    is_there(rig, when)?;
    for network in ["bridge", "six"] {
        for (client, program, script) in IDENTITY_CLIENTS {
            let run = format!(
                "docker run --rm -i --network {network} -v /root/clients:/clients:ro -e PYTHONPATH=/clients/site-packages \
                 -e NODE_PATH=/clients/node_modules --entrypoint {program} ask:1 - <<'EOF'\n{script}\nEOF"
            );
            let found = rig.shell(&run).with_context(|| format!("{when}, {client} in {network}"))?;
            let mut found: Value = serde_json::from_str(&found).with_context(|| format!("{client} printed {found}"))?;
            let token = found["token"].take();
            let expected = json!({
                "found": true, "project": "openclaw-lab", "account": ACCOUNT, "universe": "googleapis.com", "token": null,
            });
            ensure!(found == expected, "{when}, {client} in {network} understood {found}");
            let is_right = token.as_str().is_some_and(|token| token.starts_with(&format!("{TOKEN_PREFIX}{ACCOUNT}-")));
            ensure!(is_right, "{when}, {client} in {network} got the token {token}");
        }
    }
    Ok(())
}

/// From every kind of container: the account is found, the rest is refused, and the VM's own appears nowhere.
fn is_there(rig: &Rig, when: &str) -> Result<()> {
    shield::gives_identity(rig, when)?;
    for container in ["openclaw-gateway", "ask-bridge", "ask-six"] {
        answers(rig, container).with_context(|| format!("{when}, in {container}"))?;
    }
    is_closed_outside(rig).with_context(|| when.to_owned())
}

fn answers(rig: &Rig, container: &str) -> Result<()> {
    let paths = format!("{}\n{REFUSED}", ANSWERED.join("\n"));
    let ask = format!(
        "cat > /root/ask/identity.sh <<'EOS'\n{ASK}\nEOS\ncat > /root/ask/paths <<'EOP'\n{paths}EOP\n\
         docker exec -i {container} bash -c \"$(cat /root/ask/identity.sh)\" < /root/ask/paths"
    );
    let printed = rig.shell(&ask)?;
    let mut lines = printed.lines();
    for path in ANSWERED {
        ensure!(lines.next() == Some(&format!("{path} 200")), "{path}: {printed}");
    }
    let others = ["no-flavor 403", "forwarded 403", "POST 405", "PUT 405", "DELETE 405"].map(str::to_owned);
    for expected in REFUSED.lines().map(|path| format!("{path} 403")).chain(others) {
        let found = lines.next();
        ensure!(found == Some(expected.as_str()), "{found:?} instead of {expected}");
    }
    for secret in [ACCESS_TOKEN, "startup-script"] {
        ensure!(!lines.clone().any(|line| line.contains(secret)), "{secret} is in an answer: {printed}");
    }
    ensure!(!lines.clone().any(|line| line.contains(OWN)), "the VM's own account is in an answer: {printed}");
    ensure!(lines.filter(|line| line.contains(TOKEN_PREFIX)).count() == 2, "not two tokens: {printed}");
    Ok(())
}

/// Who is on the VM's network does not reach the server, at whatever address.
fn is_closed_outside(rig: &Rig) -> Result<()> {
    let cloud = network::net_of(&rig.machine()?.cloud());
    for address in [MACHINE.to_string(), "172.17.0.1".to_owned()] {
        let mut curl = Command::new("nsenter");
        curl.args([&cloud, "curl", "-s", "-m", "5", "--noproxy", "*", &format!("http://{address}:18780/")]);
        let output = rig.watch().output(&mut curl)?;
        // 7: nobody listens.
        ensure!(output.status.code() == Some(7), "{address} answers the cloud: {output:?}");
    }
    rig.shell("! curl -s -m 5 http://127.0.0.1:18780/ && ! curl -s -m 5 http://172.17.0.1:18780/").map(drop)
}

/// Nothing of it is left, and the way is closed.
fn switched_off(rig: &Rig) -> Result<()> {
    rig.attribute("openclaw-metadata-access")?;
    rig.attribute("openclaw-metadata-account")?;
    rig.boot(0)?.has(&["result=ready"])?;
    shield::is_closed_to_builds_too(rig, "switched off")?;
    rig.shell("! systemctl cat openclaw-identity.service && ! test -e /etc/openclaw-init/identity")?;
    rig.shell("! nft list ruleset | grep 18780")?;
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    ensure!(
        rig.requests()?.iter().any(|request| request["host"] == "iam-credentials"),
        "{IAM_CREDENTIALS_NAME} was not asked"
    );
    Ok(())
}
