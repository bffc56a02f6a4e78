//! What TLS towards a collector needs: authorities that are trusted, and who this process is.
//!
//! The files are read when the configuration is checked and once more when the process starts, and not later: whoever
//! replaces a certificate restarts the process.

use std::path::PathBuf;

use rustls::RootCertStore;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use tonic::transport::{ClientTlsConfig, Identity};

/// A mistake: the setting's name below `telemetry`, and what is wrong.
type Problem = (String, String);

/// A file that a setting names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// The setting's name below `telemetry`.
    pub(super) setting: String,
    pub(super) path: PathBuf,
}

impl File {
    fn problem(&self, what: impl std::fmt::Display) -> Problem {
        (self.setting.clone(), format!("is `{}`: {what}", self.path.display()))
    }

    fn read(&self) -> Result<Vec<u8>, Problem> {
        std::fs::read(&self.path).map_err(|error| self.problem(format_args!("cannot be read: {error}")))
    }

    /// The certificates in `text`, which is what the file holds; at least one.
    fn certificates(&self, text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
        match found {
            Ok(none) if none.is_empty() => Err(self.problem("holds no certificate in PEM format")),
            Ok(certificates) => Ok(certificates),
            Err(error) => Err(self.problem(format_args!("is no valid PEM: {}", in_words(&error)))),
        }
    }

    /// The private key in `text`, which is what the file holds.
    fn key(&self, text: &[u8]) -> Result<PrivateKeyDer<'static>, Problem> {
        PrivateKeyDer::from_pem_slice(text).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                self.problem("holds no private key in PEM format that is not encrypted")
            }
            // What it holds is nobody's business.
            _ => self.problem("is no valid PEM"),
        })
    }
}

/// The files for TLS towards one collector.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Tls {
    /// Authorities; without it those of the operating system.
    pub(super) certificate: Option<File>,
    /// This process's certificate.
    pub(super) client_certificate: Option<File>,
    /// Its key.
    pub(super) client_key: Option<File>,
}

impl Tls {
    /// Whether one of the files is named by `setting`.
    pub(super) fn names(&self, setting: &str) -> bool {
        let files = [&self.certificate, &self.client_certificate, &self.client_key];
        files.into_iter().flatten().any(|file| file.setting == setting)
    }

    /// Reads the files and puts them together.
    ///
    /// # Errors
    /// Everything that is wrong with them; at least one thing.
    pub(super) fn client_config(&self) -> Result<ClientTlsConfig, Vec<Problem>> {
        let (roots, identity) = (self.roots(), self.identity());
        match (roots, identity) {
            (Ok(roots), Ok(identity)) => {
                let config = ClientTlsConfig::new().trust_anchors(roots.roots);
                Ok(match identity {
                    Some(identity) => config.identity(identity),
                    None => config,
                })
            }
            (roots, identity) => {
                Err(roots.err().into_iter().chain(identity.err().into_iter().flatten()).collect())
            }
        }
    }

    /// The authorities that are trusted; at least one.
    fn roots(&self) -> Result<RootCertStore, Problem> {
        let Some(file) = &self.certificate else { return roots_of_the_system() };
        let mut roots = RootCertStore::empty();
        for (certificate, number) in file.certificates(&file.read()?)?.into_iter().zip(1..) {
            roots.add(certificate).map_err(|error| {
                file.problem(format_args!("certificate {number} of it cannot be used: {error}"))
            })?;
        }
        Ok(roots)
    }

    /// Who this process is; none if nothing says so.
    fn identity(&self) -> Result<Option<Identity>, Vec<Problem>> {
        let (certificate, key) = match (&self.client_certificate, &self.client_key) {
            (None, None) => return Ok(None),
            (Some(certificate), Some(key)) => (certificate, key),
            (Some(certificate), None) => {
                return Err(vec![certificate.problem("needs its key: set client_key too")]);
            }
            (None, Some(key)) => {
                return Err(vec![key.problem("needs its certificate: set client_certificate too")]);
            }
        };
        let chain = certificate.read().and_then(|text| Ok((certificate.certificates(&text)?, text)));
        let secret = key.read().and_then(|text| Ok((key.key(&text)?, text)));
        match (chain, secret) {
            (Ok((chain, certificate_text)), Ok((secret, key_text))) => {
                CertifiedKey::from_der(chain, secret, &ring::default_provider()).map_err(|error| {
                    let place = certificate.path.display();
                    vec![match error {
                        rustls::Error::InconsistentKeys(_) => {
                            key.problem(format_args!("is not the key of the certificate in `{place}`"))
                        }
                        _ => key.problem(format_args!(
                            "cannot be used with the certificate in `{place}`: {error}"
                        )),
                    }]
                })?;
                Ok(Some(Identity::from_pem(certificate_text, key_text)))
            }
            (chain, secret) => Err(chain.err().into_iter().chain(secret.err()).collect()),
        }
    }
}

fn roots_of_the_system() -> Result<RootCertStore, Problem> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let why = found.errors.first().map(|error| format!(" ({error})")).unwrap_or_default();
        let what = format!(
            "is not set, and the operating system knows no authorities to trust{why}: install its package \
             ca-certificates, or name a file here"
        );
        return Err(("otlp.certificate".to_owned(), what));
    }
    Ok(roots)
}

/// What is wrong with the form of a file; the library shows lines of it as numbers.
fn in_words(error: &pem::Error) -> String {
    match error {
        pem::Error::MissingSectionEnd { end_marker } => {
            format!("the line `-----END {}-----` is missing", String::from_utf8_lossy(end_marker))
        }
        pem::Error::IllegalSectionStart { line } => {
            format!("`{}` begins nothing", String::from_utf8_lossy(line).trim_end())
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// A file in `tests/certificates`, or one with this text in `directory`.
    fn file(setting: &str, path: impl AsRef<Path>) -> Option<File> {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/certificates")).join(path);
        Some(File { setting: setting.to_owned(), path })
    }

    fn told(tls: &Tls) -> Vec<String> {
        let problems = tls.client_config().err().into_iter().flatten();
        problems.map(|(setting, what)| format!("{setting} {what}")).collect()
    }

    #[test]
    fn files_that_belong_together_are_taken() {
        let tls = Tls {
            certificate: file("ca", "authority.pem"),
            client_certificate: file("cert", "broker.pem"),
            client_key: file("key", "broker.key"),
        };
        assert_eq!(told(&tls), [""; 0]);
        assert!(tls.names("ca") && tls.names("key") && !tls.names("other"));
    }

    #[test]
    fn everything_that_is_wrong_with_the_files_is_told_with_setting_and_path() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let written = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("written");
            path
        };
        let cut = written("cut", "-----BEGIN CERTIFICATE-----\nMIIB\n");
        let noise = written("noise", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
        for (ca, cert, key, expected) in [
            (file("ca", "missing"), None, None, &["missing`: cannot be read: No such file"][..]),
            (file("ca", "broker.key"), None, None, &["holds no certificate"]),
            (file("ca", cut), None, None, &["the line `-----END CERTIFICATE-----` is missing"]),
            (file("ca", noise), None, None, &["certificate 1 of it cannot be used"]),
            (file("ca", "authority.pem"), file("cert", "broker.pem"), None, &["cert is `"]),
            (file("ca", "authority.pem"), None, file("key", "broker.key"), &["key is `"]),
            (
                file("ca", "authority.pem"),
                file("cert", "broker.pem"),
                file("key", "collector.key"),
                &["is not the key of the certificate in `"],
            ),
            (
                file("ca", "missing"),
                file("cert", "broker.key"),
                file("key", "broker.pem"),
                &["ca is `", "cert is `", "holds no private key"],
            ),
        ] {
            let tls = Tls { certificate: ca, client_certificate: cert, client_key: key };
            let told = told(&tls);
            assert_eq!(told.len(), expected.len(), "{told:?}");
            for (told, expected) in told.iter().zip(expected) {
                assert!(told.contains(expected), "{told:?}: {expected}");
            }
        }
    }
}
