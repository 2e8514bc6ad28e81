//! Starting the container, and why it did not start.

use anyhow::{Context as _, Error, Result};
use bollard::errors::Error as DockerError;

use super::{Gateway, NAME};
use crate::config::GatewayConfig;
use crate::docker::{self, Engine};
use crate::error::{Code, Diagnosis};

/// The engine's words for a port that it holds itself, for a container of its own.
const PORT_ALLOCATED: &str = "port is already allocated";

impl Gateway<'_> {
    /// Starts the container.
    ///
    /// After a power cut while a container starts, the engine can hold its port for no container: it removes the
    /// endpoint when it comes up and keeps the port until it is restarted (seen with 26.1.5 here; moby issue 20486,
    /// libnetwork issue 2448). That restart is done once.
    pub(super) async fn start(&self) -> Result<()> {
        let Self { host, engine, config, .. } = *self;
        let started = match engine.client.start_container(NAME, None).await {
            Err(error) if error.to_string().contains(PORT_ALLOCATED) => {
                if let Some(holder) = publisher(engine, config.port).await? {
                    return Err(explain(error, config, Some(&holder)));
                }
                host.progress("restarting the engine, which holds the gateway's port for no container");
                docker::restart(host).await?.client.start_container(NAME, None).await
            }
            started => started,
        };
        started.map_err(|error| explain(error, config, None))?;
        host.changed(format!("started container {NAME}"));
        Ok(())
    }
}

/// The name of a running container that publishes `port`; ours does not run.
async fn publisher(engine: &Engine, port: u16) -> Result<Option<String>> {
    let containers = engine.client.list_containers(None).await.context("listing the running containers")?;
    let publishes = |ports: &[bollard::models::PortSummary]| ports.iter().any(|it| it.public_port == Some(port));
    let names = containers.into_iter().filter(|container| publishes(container.ports.as_deref().unwrap_or_default()));
    let mut names = names.map(|container| container.names.and_then(|names| names.into_iter().next()));
    Ok(names.next().map(|name| name.unwrap_or_default().trim_start_matches('/').to_owned()))
}

fn explain(error: DockerError, config: &GatewayConfig, holder: Option<&str>) -> Error {
    let (address, port) = (config.bind, config.port);
    let text = error.to_string();
    let choose = "or choose another port with the attribute openclaw-port.";
    let diagnosis = if let Some(holder) = holder {
        let remedy = format!("Container {holder} publishes port {port}: `sudo docker stop {holder}`, {choose}");
        Some(Diagnosis { code: Code::PortTaken, remedy })
    } else if text.contains(PORT_ALLOCATED) || text.contains("address already in use") {
        let remedy = format!(
            "Another program listens on port {port} of {address}: find it with `sudo ss -ltnp 'sport = :{port}'` and \
             stop it, {choose}"
        );
        Some(Diagnosis { code: Code::PortTaken, remedy })
    } else if text.contains("cannot assign requested address") {
        let remedy = format!("{address} is no address of this VM: correct the attribute openclaw-bind.");
        Some(Diagnosis { code: Code::ConfigInvalid, remedy })
    } else {
        None
    };
    let error = Error::from(error).context(format!("starting container {NAME}"));
    match diagnosis {
        Some(diagnosis) => error.context(diagnosis),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{code_of, one_line};

    #[test]
    fn a_start_that_failed_is_classified_by_the_engines_words() {
        let config = GatewayConfig::default();
        let taken = "driver failed programming external connectivity: Bind for 127.0.0.1:18789 failed: port is already allocated";
        #[rustfmt::skip]
        let cases = [
            (taken, None, Code::PortTaken, "ss -ltnp"),
            (taken, Some("other"), Code::PortTaken, "docker stop other"),
            ("listen tcp4 127.0.0.1:18789: bind: address already in use", None, Code::PortTaken, "ss -ltnp"),
            ("listen tcp4 10.9.9.9:18789: bind: cannot assign requested address", None, Code::ConfigInvalid, "openclaw-bind"),
            ("OCI runtime create failed", None, Code::Internal, "OCI"),
        ];
        for (message, holder, code, words) in cases {
            let error = DockerError::DockerResponseServerError { status_code: 500, message: message.to_owned() };
            let error = explain(error, &config, holder);
            assert_eq!(code_of(&error), code, "{message}");
            assert!(one_line(&error).contains(words), "{}", one_line(&error));
        }
    }
}
