//! Encrypted connections and the token, against a server without Rollcall in it: its answers do not matter here.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise, in its helpers too")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rollcall::{Client, Error, Tls};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};

/// A server for `localhost`. Returns the authority to trust, the address, and the `authorization` header of the last
/// call.
async fn server() -> (String, String, Arc<Mutex<Option<String>>>) {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());

    let seen = Arc::new(Mutex::new(None));
    let told = seen.clone();
    let listening = tonic::service::InterceptorLayer::new(move |request: tonic::Request<()>| {
        let header = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        *told.lock().unwrap() = header;
        Ok(request)
    });
    let (_, health) = tonic_health::server::health_reporter();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("localhost:{}", listener.local_addr().unwrap().port());
    let tls = ServerTlsConfig::new().identity(identity);
    let server = Server::builder().tls_config(tls).unwrap().layer(listening).add_service(health);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (authority.pem(), address, seen)
}

#[tokio::test]
async fn an_authority_is_trusted_and_the_token_shown() {
    let (authority, address, seen) = server().await;
    let tls = Tls::system().ca_certificate(&authority);
    let client = Client::connect(address.as_str()).tls(tls).token("open sesame").lazy().unwrap();
    let error = client.get("/").await.unwrap_err();
    assert_eq!(error.reason().map(ToString::to_string).as_deref(), Some("Unimplemented"), "{error:?}");
    assert_eq!(seen.lock().unwrap().as_deref(), Some("Bearer open sesame"));
}

#[tokio::test]
async fn whoever_is_not_trusted_hears_nothing() {
    let (authority, address, seen) = server().await;
    let patience = Duration::from_millis(500);
    let others = [
        Client::connect(format!("https://{address}")),
        Client::connect(address.as_str()).tls(Tls::system().ca_certificate(&authority).domain_name("elsewhere")),
        Client::connect(address.as_str()),
    ];
    for connect in others {
        let error = connect.token("open sesame").timeout(patience).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    }
    assert_eq!(*seen.lock().unwrap(), None);
}
