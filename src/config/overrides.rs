//! What the command line says wins over the file.

use std::{error::Error, net::SocketAddr, path::PathBuf};

use super::{BaseUrl, Config, Driver};

#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Settings that win over the file")]
pub struct Overrides {
    /// Where the registry and the API listen; may be repeated. Port 0 takes a free one [default: 127.0.0.1:5000]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub listen: Vec<SocketAddr>,

    /// Where /livez, /readyz, /metrics, /cache, /jobs and /credentials listen [default: 127.0.0.1:5001]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub admin: Option<SocketAddr>,

    /// What clients call this server; its host and port start every ephemeral name [default: http://localhost: and the
    /// port of the first listener]
    #[arg(long, value_name = "URL", value_parser = client_url)]
    pub url: Option<BaseUrl>,

    /// Where container requests are kept [default: $XDG_STATE_HOME/tidegate; root: /var/lib/tidegate]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Where blobs are kept [default: $XDG_CACHE_HOME/tidegate; root: /var/cache/tidegate]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,

    /// How cores wait for sockets and files [default: auto]
    #[arg(long, value_enum)]
    pub driver: Option<Driver>,
}

/// `127.0.0.1:5000`, with an error for people.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "an address is an IP address and a port, as in 127.0.0.1:5000, 0.0.0.0:5000 or [::]:5000".to_owned())
}

fn client_url(text: &str) -> Result<BaseUrl, Box<dyn Error + Send + Sync>> {
    let url: BaseUrl = text.parse()?;
    url.names_a_registry()?;
    Ok(url)
}

impl Config {
    pub fn override_with(&mut self, overrides: Overrides) {
        let Overrides {
            listen,
            admin,
            url,
            state_dir,
            cache_dir,
            driver,
        } = overrides;
        if !listen.is_empty() {
            self.listener.addresses = listen;
        }
        self.listener.admin = admin.unwrap_or(self.listener.admin);
        self.driver = driver.unwrap_or(self.driver);
        if url.is_some() {
            self.url = url;
        }
        if state_dir.is_some() {
            self.state_dir = state_dir;
        }
        if cache_dir.is_some() {
            self.cache.directory = cache_dir;
        }
    }
}
