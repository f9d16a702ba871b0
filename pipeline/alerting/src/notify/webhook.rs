//! The webhook receiver: `POST` of the payload as JSON.
//!
//! Any 2xx is success. 429, 5xx, network errors and the timeout may pass and are tried again (`Retry-After` is honoured); any other status
//! is final. Redirects are followed as Alertmanager does. The URL may hold a secret: it is in no error and no log line.

use super::{Notifier, NotifyError};
use crate::store::OutboxEntry;
use async_trait::async_trait;
use fletch_common::SharedClock;
use reqwest::header::{CONTENT_TYPE, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How much of an error answer is kept, in bytes.
const ANSWER_BYTES_MAX: usize = 512;
/// Longest wait a receiver may ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
const REDIRECTS_MAX: usize = 5;

/// One entry of `fletch.alerting.webhooks`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Where to post, `http` or `https`.
    pub url: String,
    /// Name of the receiver; `webhook-<n>` by position if missing.
    #[serde(default)]
    pub name: Option<String>,
    /// Longest a request may take, in seconds.
    #[serde(default = "default_timeout_seconds")]
    pub timeout_seconds: u64,
    /// How often a group that still fires is sent again, in seconds.
    #[serde(default = "default_repeat_seconds")]
    pub repeat_interval_seconds: u64,
}

fn default_timeout_seconds() -> u64 {
    10
}

/// Alertmanager's `repeat_interval`.
fn default_repeat_seconds() -> u64 {
    4 * 3_600
}

impl WebhookSettings {
    /// A webhook with default times.
    pub fn to(url: impl Into<String>) -> Self {
        Self { url: url.into(), name: None, timeout_seconds: default_timeout_seconds(), repeat_interval_seconds: default_repeat_seconds() }
    }

    /// Its name, given its position in the list.
    pub fn name_at(&self, position: usize) -> String {
        self.name.clone().unwrap_or_else(|| format!("webhook-{position}"))
    }
}

/// Posts to one URL.
#[derive(Debug)]
pub struct Webhook {
    name: String,
    url: url::Url,
    timeout: Duration,
    client: Client,
    clock: SharedClock,
}

impl Webhook {
    /// A webhook with a connection pool of its own.
    ///
    /// # Errors
    /// A sentence that names the setting at fault.
    pub fn new(name: String, settings: &WebhookSettings, clock: SharedClock) -> Result<Self, String> {
        let url = url::Url::parse(&settings.url).map_err(|e| format!("webhook `{name}`: the url is not valid: {e}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err(format!("webhook `{name}`: the url must begin with http:// or https:// and name a host"));
        }
        if settings.timeout_seconds == 0 || settings.repeat_interval_seconds == 0 {
            return Err(format!("webhook `{name}`: timeout_seconds and repeat_interval_seconds must be above 0"));
        }
        install_tls_provider();
        let client = Client::builder()
            .user_agent(concat!("Fletch/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .no_proxy()
            .build()
            .map_err(|e| format!("webhook `{name}`: no HTTP client: {e}"))?;
        Ok(Self { name, url, timeout: Duration::from_secs(settings.timeout_seconds), client, clock })
    }

    async fn post(&self, body: String) -> Result<(), NotifyError> {
        let request = self.client.post(self.url.clone()).header(CONTENT_TYPE, "application/json").body(body);
        let response = request.send().await.map_err(|e| NotifyError::passing(chain(&e.without_url())))?;
        let status = response.status();
        if status.is_success() {
            return Ok(());
        }
        let after = retry_after(&response);
        let retry = status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error();
        let reason = format!("unexpected status code {status}: {}", answer(response).await);
        Err(NotifyError { reason, retry, after })
    }
}

/// `rustls` needs one process-wide provider; whoever comes first installs it.
fn install_tls_provider() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds: u64 = response.headers().get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(RETRY_AFTER_MAX))
}

async fn answer(mut response: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = response.chunk().await {
        bytes.extend_from_slice(&chunk[..chunk.len().min(ANSWER_BYTES_MAX - bytes.len())]);
        if bytes.len() >= ANSWER_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// The error with its causes: reqwest's own text stops at "error sending request".
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

#[async_trait]
impl Notifier for Webhook {
    fn name(&self) -> &str {
        &self.name
    }

    async fn notify(&self, entry: &OutboxEntry) -> Result<(), NotifyError> {
        tokio::select! {
            result = self.post(entry.payload.clone()) => result,
            () = self.clock.sleep(self.timeout) => {
                Err(NotifyError::passing(format!("no answer within {} s", self.timeout.as_secs())))
            }
        }
    }
}
