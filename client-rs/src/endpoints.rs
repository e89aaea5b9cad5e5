//! The replicas' addresses, and how to connect to them: TLS and the token.

use std::fmt;
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Endpoint;
use tonic::{Request, Status};

use crate::error::Error;

/// Time after which a silent connection is pinged. A replica welcomes pings no more often than this.
const PING_INTERVAL: Duration = Duration::from_secs(10);
/// Time that the answer to a ping may take. Together with the interval it is shorter than the time that a replica
/// allows itself, so that a client knows of a broken connection before the lock that it carried is given to another
/// client.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// One or more replicas: `"host:port"`, several of these separated by commas, or a list of them. An address may begin
/// with `http://` or `https://`; the latter asks for TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoints(Vec<String>);

impl Endpoints {
    fn split(text: &str) -> impl Iterator<Item = String> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned)
    }
}

impl From<&str> for Endpoints {
    fn from(text: &str) -> Self {
        Self(Self::split(text).collect())
    }
}

impl From<String> for Endpoints {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<T: AsRef<str>> From<Vec<T>> for Endpoints {
    fn from(list: Vec<T>) -> Self {
        list.as_slice().into()
    }
}

impl<T: AsRef<str>> From<&[T]> for Endpoints {
    fn from(list: &[T]) -> Self {
        Self(list.iter().flat_map(|text| Self::split(text.as_ref()).collect::<Vec<_>>()).collect())
    }
}

impl<T: AsRef<str>, const N: usize> From<[T; N]> for Endpoints {
    fn from(list: [T; N]) -> Self {
        list.as_slice().into()
    }
}

/// Settings of encrypted connections. Needs the feature `tls`.
#[derive(Clone, Default)]
pub struct Tls {
    ca_certificate: Option<String>,
    identity: Option<(String, String)>,
    domain_name: Option<String>,
}

impl Tls {
    /// Trusts the certificates that the system trusts.
    #[must_use]
    pub fn system() -> Self {
        Self::default()
    }

    /// Trusts the certificates of this authority (PEM), and no others.
    #[must_use]
    pub fn ca_certificate(mut self, pem: impl Into<String>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// Presents this certificate and key (PEM) to replicas that ask for one.
    #[must_use]
    pub fn identity(mut self, certificate: impl Into<String>, key: impl Into<String>) -> Self {
        self.identity = Some((certificate.into(), key.into()));
        self
    }

    /// The name that the replicas' certificates must carry. Default: the host of each address.
    #[must_use]
    pub fn domain_name(mut self, name: impl Into<String>) -> Self {
        self.domain_name = Some(name.into());
        self
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key must not be logged.
        formatter
            .debug_struct("Tls")
            .field("ca_certificate", &self.ca_certificate.is_some())
            .field("identity", &self.identity.is_some())
            .field("domain_name", &self.domain_name)
            .finish()
    }
}

/// A replica's address, and how to connect to it.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    /// `host:port`, for messages.
    pub(crate) name: String,
    pub(crate) endpoint: Endpoint,
}

/// # Errors
/// [`Error::Invalid`] when there is no address, or when one is not valid.
pub(crate) fn addresses(endpoints: &Endpoints, tls: Option<&Tls>) -> Result<Vec<Address>, Error> {
    if endpoints.0.is_empty() {
        return Err(Error::invalid("endpoints", "there is none: name at least one HOST:PORT"));
    }
    endpoints.0.iter().map(|text| address(text, tls)).collect()
}

fn address(text: &str, tls: Option<&Tls>) -> Result<Address, Error> {
    let (scheme, name) = text.split_once("://").unwrap_or((if tls.is_some() { "https" } else { "http" }, text));
    let name = name.trim_end_matches('/');
    let wrong = |cause: &str| Error::invalid("endpoint", format!("{text:?} {cause}"));
    let is_list = name.contains(|c: char| c.is_whitespace() || c == ';');
    if is_list {
        return Err(wrong("is not HOST:PORT; several are separated by commas"));
    }
    let port = name.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some(("", Ok(port))) => return Err(wrong(&format!("has no host; on this machine it is localhost:{port}"))),
        Some((_, Ok(port))) if port > 0 && !name.contains('/') => {}
        None if !name.is_empty() => return Err(wrong(&format!("has no port; a replica's is 7700, as in {name}:7700"))),
        _ => return Err(wrong("is not HOST:PORT")),
    }
    let encrypted = match scheme {
        "http" if tls.is_some() => return Err(wrong("is not encrypted, but TLS was asked for")),
        "http" => false,
        "https" => true,
        _ => return Err(wrong("has a scheme other than http:// or https://")),
    };
    let endpoint = Endpoint::from_shared(format!("{scheme}://{name}"))
        .map_err(|error| wrong(&format!("is not an address: {error}")))?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .tcp_nodelay(true);
    let endpoint = if encrypted { with_tls(endpoint, tls)? } else { endpoint };
    Ok(Address { name: name.to_owned(), endpoint })
}

#[cfg(feature = "tls")]
pub(crate) fn with_tls(endpoint: Endpoint, tls: Option<&Tls>) -> Result<Endpoint, Error> {
    use tonic::transport::{Certificate, ClientTlsConfig, Identity};
    let mut config = ClientTlsConfig::new();
    let tls = tls.cloned().unwrap_or_default();
    config = match tls.ca_certificate {
        Some(pem) => config.ca_certificate(Certificate::from_pem(pem)),
        None => config.with_native_roots(),
    };
    if let Some((certificate, key)) = tls.identity {
        config = config.identity(Identity::from_pem(certificate, key));
    }
    if let Some(name) = tls.domain_name {
        config = config.domain_name(name);
    }
    endpoint.tls_config(config).map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        Error::invalid("tls", cause)
    })
}

#[cfg(not(feature = "tls"))]
pub(crate) fn with_tls(_: Endpoint, _: Option<&Tls>) -> Result<Endpoint, Error> {
    Err(Error::invalid("tls", "this program was built without the feature tls of the crate rollcall"))
}

/// Adds the token to every call.
#[derive(Debug, Clone, Default)]
pub(crate) struct Credentials(Option<MetadataValue<Ascii>>);

impl Credentials {
    /// # Errors
    /// [`Error::Invalid`] when the token can't be a header.
    pub(crate) fn bearer(token: &str) -> Result<Self, Error> {
        let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
            .parse()
            .map_err(|_| Error::invalid("token", "it has characters that a header can't have"))?;
        value.set_sensitive(true);
        Ok(Self(Some(value)))
    }
}

impl Interceptor for Credentials {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_named_in_several_ways() {
        let two = Endpoints(vec!["a:1".to_owned(), "b:2".to_owned()]);
        assert_eq!(Endpoints::from("a:1, b:2,"), two);
        assert_eq!(Endpoints::from(["a:1", "b:2"]), two);
        assert_eq!(Endpoints::from(vec!["a:1,b:2".to_owned()]), two);
    }

    #[test]
    fn what_is_no_address_is_named() {
        for text in ["", "localhost:ssh", "ftp://a:1", "a:1/path", "a:0", "a:1 b:1", "a:1;b:1"] {
            assert!(addresses(&text.into(), None).is_err(), "{text:?}");
        }
        for (text, hint) in [(":7700", "localhost:7700"), ("db", "db:7700"), ("a:1 b:1", "commas")] {
            let error = addresses(&text.into(), None).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
        for text in ["a:1", "[::1]:7700", "http://a:1/"] {
            assert!(addresses(&text.into(), None).is_ok(), "{text:?}");
        }
        assert!(addresses(&"http://a:1".into(), Some(&Tls::system())).is_err());
    }

    #[test]
    fn a_key_and_a_token_are_not_shown() {
        let tls = Tls::system().identity("CERTIFICATE", "SECRET");
        assert!(!format!("{tls:?}").contains("SECRET"));
        let credentials = Credentials::bearer("hush").unwrap();
        assert!(!format!("{credentials:?}").contains("hush"));
        assert!(Credentials::bearer("a\nb").is_err());
    }
}
