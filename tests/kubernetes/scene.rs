//! A platform, a cluster, and pods in it.

use std::time::{Duration, SystemTime};

use bamf_lab::agent::{Home, LIMIT, NAME, until};
use bamf_lab::kubernetes::{Cluster, Seen, Verb};
use bamf_lab::plane::{ControlPlane, IssuedIdentity, Options};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

pub(super) const BINARY: &str = env!("CARGO_BIN_EXE_bamf-agent");
/// The default name.
pub(super) const SECRET: &str = "bamf-agent-certs";

pub(super) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Starts the agent where the service account of `cluster` is mounted, in a mount namespace of its own.
pub(super) fn into_pod(home: &mut Home, cluster: &Cluster) {
    let mount = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
         mount --bind '{}' /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"",
        cluster.mount().display()
    );
    home.launch_by(&["unshare", "--mount", "sh", "-c", &mount, "sh"]);
    home.set("KUBERNETES_SERVICE_HOST", "127.0.0.1");
    home.set("KUBERNETES_SERVICE_PORT", &cluster.port().to_string());
    // Whatever proxy the pod is given, the cluster's API is asked directly.
    home.set("HTTPS_PROXY", "http://127.0.0.1:9");
    home.set("NO_PROXY", "localhost");
}

pub(super) struct Scene {
    pub(super) plane: ControlPlane,
    pub(super) cluster: Cluster,
    pub(super) token: String,
}

impl Scene {
    pub(super) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(super) fn with(options: Options) -> Self {
        let plane = ControlPlane::start(options).unwrap();
        let token = plane.issue_token(1);
        Self { plane, cluster: Cluster::start().unwrap(), token }
    }

    /// A pod with nothing in its data directory.
    pub(super) fn pod(&self) -> Home {
        let mut home = Home::of(BINARY, &self.plane, &format!("agent_name: {NAME}\njoin_token: {}\n", self.token));
        into_pod(&mut home, &self.cluster);
        home
    }

    /// A pod whose data directory holds this identity.
    pub(super) fn pod_with(&self, identity: &IssuedIdentity) -> Home {
        let home = self.pod();
        home.store(identity);
        home
    }

    /// An identity that the platform knows.
    pub(super) fn known(&self, before: u64, after: u64) -> IssuedIdentity {
        let now = SystemTime::now();
        let identity = self.plane.ca().identity(NAME, now - seconds(before), now + seconds(after)).unwrap();
        self.plane.register(&identity);
        identity
    }

    pub(super) fn put(&self, identity: &IssuedIdentity) {
        self.cluster.create(secret("kubernetes.io/tls", &data(identity))).unwrap();
    }

    /// What the Secret holds is what this pod has, or soon will be.
    pub(super) fn expect_secret(&self, home: &Home) {
        for (key, file) in [("tls.crt", "agent.crt"), ("tls.key", "agent.key"), ("ca.crt", "ca.crt")] {
            let text = || std::fs::read_to_string(home.data_dir().join(file)).unwrap();
            assert!(until(LIMIT, || self.cluster.value(SECRET, key) == text()), "{key}");
        }
    }

    pub(super) fn waits_for_secret(&self, condition: impl Fn(&Value) -> bool) -> bool {
        self.cluster.wait_for(SECRET, LIMIT, |secret, _| secret.is_some_and(&condition))
    }
}

pub(super) fn data(identity: &IssuedIdentity) -> Value {
    json!({
        "tls.crt": STANDARD.encode(&identity.certificate_pem),
        "tls.key": STANDARD.encode(&identity.private_key_pem),
        "ca.crt": STANDARD.encode(&identity.ca_pem),
    })
}

pub(super) fn secret(kind: &str, data: &Value) -> Value {
    json!({"kind": "Secret", "apiVersion": "v1", "type": kind, "metadata": {"name": SECRET}, "data": data})
}

pub(super) fn count(seen: &[Seen], verb: Verb) -> usize {
    seen.iter().filter(|seen| seen.verb == verb && !seen.rehearsal).count()
}

pub(super) fn holds(identity: &IssuedIdentity) -> impl Fn(&Value) -> bool {
    let wanted = data(identity)["tls.crt"].clone();
    move |secret| secret["data"]["tls.crt"] == wanted
}
