//! Secrets from Secret Manager: read, refused, kept, rotated, taken back, and nowhere else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::checks::is_ready;
use super::rig::Rig;

/// Where the machine keeps a text, as files or the journal show it.
const SEARCH: &str = include_str!("../../scripts/private-registry/search-token.sh");

const PROJECT: &str = "projects/openclaw-lab";
const ENV: &str = "/mnt/disks/openclaw-data/openclaw/.env";
const ACCOUNT: &str = "--member=serviceAccount:708288290784-compute@developer.gserviceaccount.com";

/// Values that are nowhere else by chance.
const TOKEN: &str = "canary-7f3a91c2e5d84b06-token-of-the-gateway";
const KEY: &str = "canary-1b9e\"key\" # $HOME";
const ROTATED: &str = "canary-55d0-rotated";
const REGIONAL: &str = "canary-c4a8-regional";

/// The secrets of the lab's project, as files.
struct Secrets(PathBuf);

impl Secrets {
    fn put(&self, file: &str, value: &str) -> Result<()> {
        let file = self.0.join(file);
        fs::create_dir_all(file.parent().context("a file without a directory")?).context("making a secret")?;
        fs::write(&file, value).with_context(|| format!("writing {}", file.display()))
    }

    fn rename(&self, from: &str, to: &str) -> Result<()> {
        fs::rename(self.0.join(from), self.0.join(to)).with_context(|| format!("renaming the secret {from}"))
    }

    fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.0.join(file)).with_context(|| format!("removing {file}"))
    }
}

/// On a machine that is ready, and is so in the end.
pub(super) fn of_secret_manager(rig: &Rig) -> Result<()> {
    let secrets = Secrets(rig.machine()?.secrets().join(PROJECT));
    ensure!(asked(rig)? == 0, "Secret Manager was asked for nothing");
    secrets.put("secrets/token/versions/1", &format!("{TOKEN}\n"))?;
    secrets.put("secrets/key/versions/1", KEY)?;
    secrets.put("locations/europe-west1/secrets/regional/versions/1", REGIONAL)?;
    rig.shell(&format!("echo 'CANARY_KEY=mine' >> {ENV}"))?;
    rig.attribute(&format!("openclaw-gateway-token=secret:{PROJECT}/secrets/token"))?;
    rig.attribute(&format!("openclaw-secret-CANARY_KEY={PROJECT}/secrets/key/versions/latest"))?;
    rig.attribute(&format!("openclaw-secret-OTHER={PROJECT}/locations/europe-west1/secrets/regional"))?;
    one_restart(rig).context("the first values")?;
    ensure!(asked(rig)? == 3, "{} requests for three secrets", asked(rig)?);
    rig.boot(0)?.has(&["changes=0", "result=ready"])?;
    ensure!(rig.shell("openclaw-init link")?.contains(TOKEN), "the token is another one");
    let env = rig.shell(&format!("stat -c '%a %u' {ENV}; cat {ENV}"))?;
    let lines = ["600 1000", "CANARY_KEY=mine", &format!("CANARY_KEY='{KEY}' # openclaw-init")];
    ensure!(lines.iter().all(|line| env.lines().any(|it| it == *line)), ".env is\n{env}");
    refused(rig, &secrets).context("refusals")?;
    kept(rig, &secrets).context("what passes")?;
    rotated(rig, &secrets).context("rotation")?;
    in_settings(rig).context("a secret in the gateway's settings")?;
    without_network(rig).context("without network")?;
    nowhere_else(rig).context("canaries")?;
    taken_back(rig).context("removed attributes")
}

/// How often a value was asked for.
fn asked(rig: &Rig) -> Result<usize> {
    Ok(rig.requests()?.iter().filter(|request| request["host"] == "secret-manager").count())
}

/// The next run changes something, and starts the container once.
fn one_restart(rig: &Rig) -> Result<()> {
    let now = rig.shell("date +%s.%N")?;
    rig.boot(0)?.has(&["stage=secrets status=ok changes=1", "result=ready"])?;
    let starts = format!(
        "docker events --since {now} --until $(date +%s.%N) --filter container=openclaw-gateway --filter event=start | wc -l"
    );
    let starts = rig.shell(&starts)?;
    ensure!(starts == "1", "{starts} starts of the gateway");
    rig.shell("curl -fsS http://127.0.0.1:18789/readyz").map(drop)
}

/// Every refusal is told apart and names the command; the gateway that runs goes on.
fn refused(rig: &Rig, secrets: &Secrets) -> Result<()> {
    let started = "docker inspect --format '{{.State.StartedAt}} {{.State.Status}}' openclaw-gateway";
    let before = rig.shell(started)?;
    let fails = |parts: &[&str]| rig.boot(26).and_then(|output| output.has(parts).map(drop));
    let grant = format!("gcloud secrets add-iam-policy-binding key --project=openclaw-lab {ACCOUNT} --role=roles/");
    secrets.put("secrets/key/denied", "")?;
    fails(&["secrets/key/versions/latest", "Permission 'secretmanager.versions.access' denied", &grant])?;
    secrets.remove("secrets/key/denied")?;
    secrets.put("api-disabled", "")?;
    fails(&["gcloud services enable secretmanager.googleapis.com --project=708288290784"])?;
    secrets.remove("api-disabled")?;
    rig.lab_ends(0, "metadata", &["scopes", "https://www.googleapis.com/auth/devstorage.read_only"])?;
    fails(&["gcloud compute instances set-service-account", "--scopes=cloud-platform"])?;
    rig.lab_ends(0, "metadata", &["scopes", "https://www.googleapis.com/auth/cloud-platform"])?;
    for (state, part) in [
        ("disabled", "gcloud secrets versions enable 1 --secret=key --project=openclaw-lab"),
        ("destroyed", "gcloud secrets versions add key --project=openclaw-lab --data-file=FILE"),
    ] {
        let wrong = format!("secrets/key/versions/1.{state}");
        secrets.rename("secrets/key/versions/1", &wrong)?;
        fails(&[&format!("is in {} state", state.to_uppercase()), part])?;
        secrets.rename(&wrong, "secrets/key/versions/1")?;
    }
    secrets.put("secrets/odd/versions/1", "canary\u{1b}")?;
    for (name, part) in [
        ("gone", "gcloud secrets create gone --project=openclaw-lab"),
        ("key/versions/9", "gcloud secrets versions list key --project=openclaw-lab"),
        ("odd", "odd/versions/latest cannot be OTHER: it has a control character"),
    ] {
        rig.attribute(&format!("openclaw-secret-OTHER={PROJECT}/secrets/{name}"))?;
        fails(&[part]).with_context(|| format!("with {name}"))?;
    }
    rig.attribute(&format!("openclaw-secret-OTHER={PROJECT}/locations/europe-west1/secrets/regional"))?;
    ensure!(rig.shell(started)? == before, "the gateway was touched");
    Ok(())
}

/// What passes is asked again; a value that is not that of its checksum is not taken.
fn kept(rig: &Rig, secrets: &Secrets) -> Result<()> {
    let before = asked(rig)?;
    rig.lab_ends(0, "metadata", &["fault", &format!("path=/v1/{PROJECT}/secrets/key,status=503,times=2")])?;
    let output = rig.boot(0)?;
    output.has(&["changes=0", "result=ready"])?;
    ensure!(!output.text.contains("stays as it is"), "a value was not read:\n{}", output.text);
    ensure!(asked(rig)? == before + 5, "{} requests", asked(rig)? - before);
    secrets.rename("secrets/key/versions/1", "secrets/key/versions/1.corrupt")?;
    rig.lab_ends(0, "metadata", &["fault", &format!("path=/v1/{PROJECT}/secrets/token,blackhole")])?;
    let parts = ["OPENCLAW_GATEWAY_TOKEN stays as it is", "CANARY_KEY stays as it is", "checksum", "changes=0"];
    rig.boot(0)?.has(&parts)?;
    rig.lab_ends(0, "metadata", &["fault", "clear"])?;
    secrets.rename("secrets/key/versions/1.corrupt", "secrets/key/versions/1")
}

/// A new version is used by the next run, once; a pinned one is not left.
fn rotated(rig: &Rig, secrets: &Secrets) -> Result<()> {
    secrets.put("secrets/key/versions/2", ROTATED)?;
    one_restart(rig)?;
    rig.boot(0)?.has(&["changes=0"])?;
    ensure!(rig.shell(&format!("grep -c {ROTATED} {ENV}"))? == "1", "the new value is not in .env");
    ensure!(!rig.shell(&format!("cat {ENV}"))?.contains(KEY), "the old value is still in .env");
    rig.attribute(&format!("openclaw-secret-CANARY_KEY={PROJECT}/secrets/key/versions/1"))?;
    one_restart(rig)
}

/// `openclaw.json` has a reference, and `.env` the value.
fn in_settings(rig: &Rig) -> Result<()> {
    let settings =
        format!(r#"{{"channels":{{"telegram":{{"enabled":false,"botToken":"secret:{PROJECT}/secrets/key"}}}}}}"#);
    rig.attribute(&format!("openclaw-config={settings}"))?;
    rig.boot(0)?.has(&["result=ready"])?;
    let written = rig.shell("cat /home/node/.openclaw/openclaw.json")?;
    let (_, rest) = written.split_once("${SECRET_KEY_").with_context(|| format!("openclaw.json is {written}"))?;
    let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
    let line = format!("SECRET_KEY_{name}='{ROTATED}' # openclaw-init");
    let line_plain = format!("SECRET_KEY_{name}={ROTATED} # openclaw-init");
    let env = rig.shell(&format!("cat {ENV}"))?;
    ensure!(env.lines().any(|it| it == line || it == line_plain), "SECRET_KEY_{name} is not in .env");
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

/// The last values are enough for a boot. A secret that has none is worth another try.
fn without_network(rig: &Rig) -> Result<()> {
    rig.shell("ip route add 169.254.169.254 via 10.128.0.1 dev eth0 && ip route delete default")?;
    rig.lab_ends(0, "reboot", &[])?;
    is_ready(rig)?;
    let status = rig.status()?;
    let warnings = status["detail"]["warnings"].to_string();
    ensure!(warnings.contains("CANARY_KEY stays as it is"), "the warnings are {warnings}");
    rig.attribute(&format!("openclaw-secret-NEW={PROJECT}/secrets/key"))?;
    rig.boot(39)?.has(&["secrets/key/versions/latest", "Cloud NAT"])?;
    rig.attribute("openclaw-secret-NEW")?;
    rig.shell("ip route add default via 10.128.0.1 dev eth0 && ip route delete 169.254.169.254")?;
    rig.boot(0)?.has(&["changes=0", "result=ready"]).map(drop)
}

/// No value is outside of `.env` and the gateway's processes: not in the engine's files, in arguments, or in what is
/// reported.
fn nowhere_else(rig: &Rig) -> Result<()> {
    let console = fs::read_to_string(rig.machine()?.console()).context("reading the console")?;
    let told = format!(
        "{}\n{}\n{}\n{}",
        rig.guest_attributes()?,
        rig.status()?,
        rig.shell("docker inspect openclaw-gateway; docker logs openclaw-gateway 2>&1")?,
        rig.shell("cat /proc/[0-9]*/cmdline 2> /dev/null | tr '\\0' '\\n'")?,
    );
    for canary in [TOKEN, "canary-1b9e", ROTATED, REGIONAL] {
        let found = rig.script(SEARCH, &[canary])?;
        ensure!(found.lines().any(|line| line == ENV), "{canary} is not in .env");
        ensure!(found.lines().all(|line| line == ENV), "{canary} is in {found}");
        ensure!(!console.contains(canary) && !told.contains(canary), "{canary} is told");
    }
    Ok(())
}

/// Without the attributes nobody is asked, and `.env` has what it had before; the token stays.
fn taken_back(rig: &Rig) -> Result<()> {
    for key in ["openclaw-gateway-token", "openclaw-secret-CANARY_KEY", "openclaw-secret-OTHER", "openclaw-config"] {
        rig.attribute(key)?;
    }
    let before = asked(rig)?;
    rig.boot(0)?.has(&["result=ready"])?;
    ensure!(asked(rig)? == before, "Secret Manager was asked for nothing");
    let env = rig.shell(&format!("cat {ENV}"))?;
    ensure!(!env.contains("# openclaw-init"), "a line stays: {env}");
    let settings = rig.shell("cat /home/node/.openclaw/openclaw.json")?;
    ensure!(!settings.contains("SECRET_KEY_"), "the reference stays: {settings}");
    ensure!(env.lines().any(|line| line == "CANARY_KEY=mine"), "the user's line is gone: {env}");
    ensure!(env.contains(TOKEN), "the token is another one without its attribute");
    rig.boot(0)?.has(&["changes=0"]).map(drop)
}
