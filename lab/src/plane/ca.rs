//! The platform's certificate authority: Ed25519 throughout, exactly the profiles of protocol 1.2.
//!
//! Two details are worth their code, because agents have met peers that differ. Private keys are PKCS#8 *version 1*, 48
//! bytes of DER without the public key: key libraries like to write version 2 and some cannot read version 1. Leaves carry
//! neither a subject nor an authority key identifier; the certificate library adds the former to every leaf that says
//! `CA:FALSE`, so that extension is written by hand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use sha2::{Digest as _, Sha256};
use x509_parser::certificate::X509Certificate;

/// The organisation in every subject.
const ORGANISATION: &str = "BAMF";

/// Ten years of 365 days.
const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// What stands before the 32-byte seed in a version 1 PKCS#8 Ed25519 key (RFC 8410, section 7).
const PKCS8_V1_ED25519: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// `basicConstraints` (2.5.29.19) with `CA:FALSE`, which DER writes as an empty sequence.
const BASIC_CONSTRAINTS: [u64; 4] = [2, 5, 29, 19];
const NOT_A_CA: [u8; 2] = [0x30, 0x00];

/// A certificate authority with its key.
#[derive(Debug)]
pub struct CertificateAuthority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    public_key: ed25519_dalek::VerifyingKey,
}

/// An agent's identity as the API hands it out, ready to be laid out as `agent.crt`, `agent.key` and `ca.crt`.
#[derive(Clone, Debug)]
pub struct IssuedIdentity {
    /// The agent's name, the certificate's CN.
    pub name: String,
    /// The identity certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS#8 version 1.
    pub private_key_pem: String,
    /// The authority that signed it.
    pub ca_pem: String,
    /// SHA-256 of the certificate's DER in lower-case hex: what revocation goes by (protocol 4.4).
    pub sha256: String,
    /// The end of its validity, in whole seconds.
    pub not_after: SystemTime,
}

/// A certificate of a bridge or of one end of a session, with its key.
#[derive(Clone, Debug)]
pub struct IssuedCertificate {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key, PKCS#8 version 1.
    pub private_key_pem: String,
}

/// Which end of a session a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// The user's side.
    Client,
    /// The agent's side.
    Agent,
}

impl Role {
    /// The word in the role SAN.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Agent => "agent",
        }
    }
}

/// What the certificates of a session say, in their SANs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionNames {
    /// The session's id.
    pub session: String,
    /// The resource's name.
    pub resource: String,
    /// The id of the bridge that they are good at.
    pub bridge: String,
    /// The effective resource type; absent on very old platforms.
    pub kind: Option<String>,
}

/// What differs from one kind of leaf to the next.
struct Profile {
    common_name: String,
    alternative_names: Vec<SanType>,
    key_usages: Vec<KeyUsagePurpose>,
    extended_key_usages: Vec<ExtendedKeyUsagePurpose>,
}

impl Profile {
    /// Agent identity: good for both ends of a TLS connection.
    fn agent(name: &str) -> Result<Self, rcgen::Error> {
        Ok(Self {
            common_name: name.to_owned(),
            alternative_names: vec![SanType::URI(format!("bamf://agent/{name}").try_into()?)],
            key_usages: vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment],
            extended_key_usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        })
    }

    /// A bridge: DNS names besides the URI, otherwise as an agent.
    fn bridge(id: &str, host_names: &[String]) -> Result<Self, rcgen::Error> {
        let mut profile = Self::agent(id)?;
        profile.alternative_names = vec![SanType::URI(format!("bamf://bridge/{id}").try_into()?)];
        for name in host_names {
            profile.alternative_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        Ok(profile)
    }

    /// One end of a session: good for clients only, and for nothing but signatures.
    fn session(common_name: &str, role: Role, names: &SessionNames) -> Result<Self, rcgen::Error> {
        let mut fields = vec![
            ("session", names.session.as_str()),
            ("resource", &names.resource),
            ("bridge", &names.bridge),
            ("role", role.word()),
        ];
        fields.extend(names.kind.as_deref().map(|kind| ("type", kind)));
        let uri = |(field, value)| Ok(SanType::URI(format!("bamf://{field}/{value}").try_into()?));
        Ok(Self {
            common_name: common_name.to_owned(),
            alternative_names: fields.into_iter().map(uri).collect::<Result<_, rcgen::Error>>()?,
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            extended_key_usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
        })
    }
}

impl CertificateAuthority {
    /// A new authority with a key of its own. A second one is a foreign one: nothing it signs is accepted by the first.
    #[must_use]
    pub fn new() -> Self {
        let key = Ed25519Key::generate();
        let params = authority(whole_seconds(SystemTime::now()));
        let pem =
            params.self_signed(&key.pair).expect("constant names and a fresh Ed25519 key make a certificate").pem();
        let public_key = key.pair.public_key_raw().try_into().ok().map(ed25519_dalek::VerifyingKey::from_bytes);
        let public_key =
            public_key.and_then(Result::ok).expect("a generated Ed25519 public key is a point of 32 bytes");
        Self { issuer: Issuer::new(params, key.pair), pem, public_key }
    }

    /// The authority's certificate.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// An agent identity, valid from `not_before` to `not_after` in whole seconds.
    ///
    /// # Errors
    /// The name does not fit into a URI, e.g. because it is not ASCII.
    pub fn identity(
        &self,
        name: &str,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<IssuedIdentity, rcgen::Error> {
        let (certificate, key) = self.issue(Profile::agent(name)?, not_before, not_after)?;
        Ok(IssuedIdentity {
            name: name.to_owned(),
            certificate_pem: certificate.pem(),
            private_key_pem: key.pem,
            ca_pem: self.pem.clone(),
            sha256: fingerprint(certificate.der()),
            not_after: whole_seconds(not_after),
        })
    }

    /// A bridge's certificate for these DNS names.
    ///
    /// # Errors
    /// The id does not fit into a URI, or a name is no ASCII.
    pub fn bridge(
        &self,
        id: &str,
        host_names: &[String],
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<IssuedCertificate, rcgen::Error> {
        let (certificate, key) = self.issue(Profile::bridge(id, host_names)?, not_before, not_after)?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), private_key_pem: key.pem })
    }

    /// The certificate of one end of a session. The CN is the user's e-mail address or the agent's UUID.
    ///
    /// # Errors
    /// A name does not fit into a URI.
    pub fn session(
        &self,
        common_name: &str,
        role: Role,
        names: &SessionNames,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<IssuedCertificate, rcgen::Error> {
        let (certificate, key) = self.issue(Profile::session(common_name, role, names)?, not_before, not_after)?;
        Ok(IssuedCertificate { certificate_pem: certificate.pem(), private_key_pem: key.pem })
    }

    /// Whether this authority's key signed `certificate`. Says nothing about its dates.
    #[must_use]
    pub(crate) fn signed(&self, certificate: &X509Certificate<'_>) -> bool {
        ed25519_dalek::Signature::from_slice(&certificate.signature_value.data).is_ok_and(|signature| {
            self.public_key.verify_strict(certificate.tbs_certificate.as_ref(), &signature).is_ok()
        })
    }

    fn issue(
        &self,
        profile: Profile,
        not_before: SystemTime,
        not_after: SystemTime,
    ) -> Result<(rcgen::Certificate, Ed25519Key), rcgen::Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(&profile.common_name);
        params.serial_number = Some(random_serial());
        params.not_before = whole_seconds(not_before).into();
        params.not_after = whole_seconds(not_after).into();
        params.subject_alt_names = profile.alternative_names;
        params.key_usages = profile.key_usages;
        params.extended_key_usages = profile.extended_key_usages;
        params.is_ca = IsCa::NoCa;
        let mut not_a_ca = CustomExtension::from_oid_content(&BASIC_CONSTRAINTS, NOT_A_CA.to_vec());
        not_a_ca.set_criticality(true);
        params.custom_extensions = vec![not_a_ca];
        let key = Ed25519Key::generate();
        Ok((params.signed_by(&key.pair, &self.issuer)?, key))
    }
}

impl Default for CertificateAuthority {
    fn default() -> Self {
        Self::new()
    }
}

/// A private key, and the text in which it is handed out.
struct Ed25519Key {
    pair: KeyPair,
    pem: String,
}

impl Ed25519Key {
    fn generate() -> Self {
        let mut der = PKCS8_V1_ED25519.to_vec();
        der.extend(random::<32>());
        let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(&der));
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(der), &rcgen::PKCS_ED25519);
        Self { pair: pair.expect("any 32 bytes are an Ed25519 seed"), pem }
    }
}

fn authority(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = subject("BAMF Certificate Authority");
    params.serial_number = Some(random_serial());
    params.not_before = now.into();
    params.not_after = (now + CA_LIFETIME).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name.push(DnType::OrganizationName, ORGANISATION);
    name
}

fn random_serial() -> SerialNumber {
    let mut serial = random::<20>();
    // RFC 5280, 4.1.2.2: positive, not zero, at most 20 octets.
    serial[0] = serial[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&serial)
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.secure_random.fill(&mut bytes).expect("the operating system gives random bytes");
    bytes
}

/// The second that `time` lies in; certificates know no fractions.
pub(crate) fn whole_seconds(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// SHA-256 in lower-case hex.
pub(crate) fn fingerprint(der: &[u8]) -> String {
    hex(&Sha256::digest(der))
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::{GeneralName, Pem};

    use super::*;

    const HOUR: Duration = Duration::from_secs(60 * 60);

    fn parsed(pem: &str, check: impl FnOnce(&X509Certificate<'_>)) {
        let pem = Pem::iter_from_buffer(pem.as_bytes()).next().unwrap().unwrap();
        check(&pem.parse_x509().unwrap());
    }

    fn extension_names(certificate: &X509Certificate<'_>) -> Vec<(String, bool)> {
        certificate.extensions().iter().map(|e| (e.oid.to_id_string(), e.critical)).collect()
    }

    #[test]
    fn the_authority_has_the_platforms_profile() {
        parsed(CertificateAuthority::new().pem(), |ca| {
            assert_eq!(ca.subject().to_string(), "CN=BAMF Certificate Authority, O=BAMF");
            assert_eq!(ca.issuer(), ca.subject());
            let constraints = ca.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && constraints.value.ca);
            assert_eq!(constraints.value.path_len_constraint, Some(0));
            let usage = ca.key_usage().unwrap().unwrap();
            assert!(usage.critical);
            assert_eq!(usage.value.flags, 0b110_0001, "digitalSignature, keyCertSign, cRLSign and nothing else");
            assert!(extension_names(ca).iter().any(|(oid, _)| oid == "2.5.29.14"), "subject key identifier");
            let validity = ca.validity();
            assert_eq!(validity.not_after.timestamp() - validity.not_before.timestamp(), 315_360_000);
        });
    }

    #[test]
    fn an_agent_identity_has_the_platforms_profile() {
        let ca = CertificateAuthority::new();
        let start = UNIX_EPOCH + Duration::from_millis(1_800_000_000_750);
        let issued = ca.identity("edge-agent-01", start, start + HOUR).unwrap();
        parsed(&issued.certificate_pem, |leaf| {
            assert!(ca.signed(leaf));
            assert_eq!(leaf.subject().to_string(), "CN=edge-agent-01, O=BAMF");
            assert_eq!(leaf.issuer().to_string(), "CN=BAMF Certificate Authority, O=BAMF");
            assert_eq!(leaf.validity().not_before.timestamp(), 1_800_000_000, "whole seconds, not rounded up");
            assert_eq!(leaf.validity().not_after.timestamp(), 1_800_003_600);
            assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 0b101, "digitalSignature, keyEncipherment");
            let extended = leaf.extended_key_usage().unwrap().unwrap().value;
            assert!(extended.server_auth && extended.client_auth && !extended.any);
            let names = leaf.subject_alternative_name().unwrap().unwrap();
            assert_eq!(names.value.general_names, [GeneralName::URI("bamf://agent/edge-agent-01")]);
            let mut extensions = extension_names(leaf);
            extensions.sort();
            let expected = [("2.5.29.15", true), ("2.5.29.17", false), ("2.5.29.19", true), ("2.5.29.37", false)];
            assert_eq!(extensions, expected.map(|(oid, critical)| (oid.to_owned(), critical)), "neither SKI nor AKI");
            let constraints = leaf.basic_constraints().unwrap().unwrap();
            assert!(constraints.critical && !constraints.value.ca);
        });
    }

    #[test]
    fn a_bridge_has_its_host_names_beside_its_uri() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let names = ["0.bridge.example.com".to_owned(), "b-0.bamf.svc.cluster.local".to_owned()];
        parsed(&ca.bridge("b-0", &names, now, now + HOUR).unwrap().certificate_pem, |leaf| {
            assert_eq!(leaf.subject().to_string(), "CN=b-0, O=BAMF");
            assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 0b101);
            let found = leaf.subject_alternative_name().unwrap().unwrap().value.general_names.clone();
            let dns = names.iter().map(|name| GeneralName::DNSName(name));
            assert_eq!(found, [GeneralName::URI("bamf://bridge/b-0")].into_iter().chain(dns).collect::<Vec<_>>());
        });
    }

    #[test]
    fn a_session_certificate_says_all_there_is_to_say_in_uris() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let names = SessionNames {
            session: "-k3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke".into(),
            resource: "orders-db".into(),
            bridge: "demo-bridge-1".into(),
            kind: Some("postgres".into()),
        };
        parsed(
            &ca.session("ann@example.com", Role::Client, &names, now, now + HOUR).unwrap().certificate_pem,
            |leaf| {
                assert_eq!(leaf.subject().to_string(), "CN=ann@example.com, O=BAMF");
                assert_eq!(leaf.key_usage().unwrap().unwrap().value.flags, 0b1, "digitalSignature");
                let extended = leaf.extended_key_usage().unwrap().unwrap().value;
                assert!(extended.client_auth && !extended.server_auth);
                let found = &leaf.subject_alternative_name().unwrap().unwrap().value.general_names;
                let expected = [
                    "bamf://session/-k3vQ0m_8h-TtYx2LrW7cPq1Ab9Dn4Ke",
                    "bamf://resource/orders-db",
                    "bamf://bridge/demo-bridge-1",
                    "bamf://role/client",
                    "bamf://type/postgres",
                ];
                assert_eq!(*found, expected.map(GeneralName::URI));
            },
        );
    }

    #[test]
    fn a_private_key_is_48_bytes_of_version_1_and_belongs_to_its_certificate() {
        let issued = CertificateAuthority::new().identity("a", SystemTime::now(), SystemTime::now() + HOUR).unwrap();
        let lines: Vec<_> = issued.private_key_pem.lines().collect();
        assert_eq!((lines.len(), lines[0], lines[2]), (3, "-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"));
        let der = STANDARD.decode(lines[1]).unwrap();
        assert_eq!((der.len(), &der[..16]), (48, &PKCS8_V1_ED25519[..]));
        let key = ed25519_dalek::SigningKey::from_bytes(&der[16..].try_into().unwrap());
        parsed(&issued.certificate_pem, |leaf| {
            assert_eq!(leaf.public_key().subject_public_key.data.as_ref(), key.verifying_key().as_bytes());
        });
    }

    #[test]
    fn what_a_foreign_authority_signed_is_not_ours() {
        let issued = CertificateAuthority::new().identity("a", SystemTime::now(), SystemTime::now() + HOUR).unwrap();
        parsed(&issued.certificate_pem, |leaf| assert!(!CertificateAuthority::new().signed(leaf)));
    }

    #[test]
    fn a_name_that_is_no_ascii_cannot_be_issued() {
        let now = SystemTime::now();
        assert!(CertificateAuthority::new().identity("müll", now, now + HOUR).is_err());
    }

    #[test]
    fn every_certificate_has_a_serial_number_of_its_own() {
        let (ca, now) = (CertificateAuthority::new(), SystemTime::now());
        let [one, two] = [(); 2].map(|()| ca.identity("a", now, now + HOUR).unwrap());
        parsed(&one.certificate_pem, |one| {
            parsed(&two.certificate_pem, |two| assert_ne!(one.raw_serial(), two.raw_serial()));
        });
    }
}
