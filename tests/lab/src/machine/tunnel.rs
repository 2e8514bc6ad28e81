//! A port of the machine's own on the development machine, like `ssh -L`.

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use crate::cloud::{self, network};
use crate::state::Lab;

/// Makes the machine's own `port` reachable on this machine's: hands connections on until it is interrupted.
pub fn open(lab: &Lab, port: u16) -> Result<()> {
    cloud::runtime()?.block_on(async {
        // Bound here, outside; what is connected later is in the machine's network.
        let listener = TcpListener::bind(("127.0.0.1", port)).await.with_context(|| format!("listening on {port}"))?;
        network::enter(&lab.machine())?;
        println!("http://127.0.0.1:{port}/ is the machine's; end with Ctrl-C");
        loop {
            let (mut near, _) = listener.accept().await.context("accepting a connection")?;
            tokio::spawn(async move {
                // A broken connection concerns nobody but its two ends.
                if let Ok(mut far) = TcpStream::connect(("127.0.0.1", port)).await {
                    let _ = copy_bidirectional(&mut near, &mut far).await;
                }
            });
        }
    })
}
