//! Docker's own registry program over a directory of images, and what its log says.

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cloud::requests::AnsweredRequest;

/// How a registry is to run.
#[derive(Debug)]
pub struct Registry<'a> {
    /// The directory of the file-system storage driver.
    pub storage: &'a Path,
    /// Where it listens.
    pub address: SocketAddr,
    /// Certificate chain and key, two PEM files; plain HTTP without them.
    pub tls: Option<(&'a Path, &'a Path)>,
    /// Whether pushes are refused.
    pub read_only: bool,
    /// Who may come in, as a file of bcrypt hashes (`htpasswd -B`); everybody without it.
    pub accounts: Option<&'a Path>,
}

impl Registry<'_> {
    /// The program that serves it, not started yet: configuration and log are files in `directory`.
    ///
    /// It is killed when the thread that starts it ends.
    pub fn command(&self, directory: &Path) -> Result<Command> {
        let file = directory.join("registry.yml");
        // JSON is YAML.
        fs::write(&file, self.configuration().to_string()).with_context(|| format!("writing {}", file.display()))?;
        let log = log_file(directory);
        let open = || File::options().create(true).append(true).open(&log);
        let (stdout, stderr) =
            open().and_then(|it| Ok((it.try_clone()?, it))).with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "docker-registry", "serve"]).arg(&file);
        command.stdin(std::process::Stdio::null()).stdout(stdout).stderr(stderr);
        Ok(command)
    }

    fn configuration(&self) -> Value {
        let mut http = json!({ "addr": self.address.to_string() });
        if let Some((certificate, key)) = self.tls {
            http["tls"] = json!({ "certificate": certificate, "key": key });
        }
        let mut configuration = json!({
            "version": "0.1",
            "log": { "accesslog": { "disabled": true }, "level": "info", "formatter": "json" },
            "storage": {
                "filesystem": { "rootdirectory": self.storage },
                "maintenance": { "readonly": { "enabled": self.read_only } },
                "redirect": { "disable": true },
            },
            "http": http,
        });
        if let Some(accounts) = self.accounts {
            configuration["auth"] = json!({ "htpasswd": { "realm": "lab", "path": accounts } });
        }
        configuration
    }
}

/// The log of the registry that keeps its files in `directory`: one JSON object a line.
pub fn log_file(directory: &Path) -> PathBuf {
    directory.join("registry.log")
}

/// The requests that a registry's log tells of, oldest first.
pub fn requests(log: &str) -> Vec<AnsweredRequest> {
    log.lines().filter_map(|line| request(&serde_json::from_str(line).ok()?)).collect()
}

/// A line of the log about a finished request; the registry writes many others.
fn request(line: &Value) -> Option<AnsweredRequest> {
    let field = |name: &str| Some(line.get(format!("http.{name}"))?.as_str()?.to_owned());
    Some(AnsweredRequest {
        host: field("request.host")?,
        method: field("request.method")?,
        path: field("request.uri")?,
        status: line.get("http.response.status")?.as_u64()?.try_into().ok()?,
    })
}
