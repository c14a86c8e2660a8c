//! Requests to a cluster's API, with a service account that is mounted as Kubernetes does it.

use std::path::Path;

use bamf_lab::agent::write;
use bamf_lab::machine::or_skip;
use bamf_lab::serve::Network;
use bamf_lab::targets::{Target, TlsFront};
use bamf_lab::visitor::{Resource, User};

use super::scene::Scene;

/// Starts the agent where `account` is mounted as the service account, in a mount namespace of its own.
fn mounted(account: &Path) -> Vec<String> {
    let mount = format!(
        "mount -t tmpfs tmpfs /run && mkdir -p /run/secrets/kubernetes.io/serviceaccount && \
         mount --bind '{}' /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"",
        account.display()
    );
    ["unshare", "--mount", "sh", "-c", &mount, "sh"].map(str::to_owned).to_vec()
}

struct Cluster {
    scene: Scene,
    api: Target,
    account: tempfile::TempDir,
    front: TlsFront,
}

impl Cluster {
    fn new() -> Self {
        let api = Target::http(&Network::Host).unwrap();
        let front = TlsFront::start(&Network::Host, &[], api.address()).unwrap();
        let account = tempfile::tempdir().unwrap();
        write(account.path().join("token"), "service-account-1\n");
        write(account.path().join("ca.crt"), front.ca_pem());
        let port = front.address().port();
        let scene = Scene::in_home(
            |web| {
                format!(
                    "{}\n  - {{name: k8s, type: kubernetes, hostname: localhost, port: {port}}}\n",
                    super::scene::wiki(web, "")
                )
            },
            |home| {
                let launcher = mounted(account.path());
                home.launch_by(&launcher.iter().map(String::as_str).collect::<Vec<_>>());
            },
        )
        .opened();
        Self { scene, api, account, front }
    }

    fn resource(&self) -> Resource {
        Resource::kubernetes("localhost", Some(self.front.address().port()))
    }
}

#[test]
fn a_cluster_is_asked_as_the_service_account_on_behalf_of_the_user() {
    if or_skip("a_cluster_is_asked_as_the_service_account_on_behalf_of_the_user") {
        return;
    }
    let cluster = Cluster::new();
    let visitor = cluster.scene.visitor_of(cluster.resource());
    let answer = visitor.get("/api/v1/pods?watch=1").unwrap();
    assert_eq!(answer.status, 200, "{}\n{}", answer.text(), cluster.scene.agent.log());
    let request = cluster.api.seen().requests.pop().unwrap();
    assert_eq!(request.path, "/api/v1/pods?watch=1");
    assert_eq!(request.all("authorization").collect::<Vec<_>>(), ["Bearer service-account-1"]);
    assert_eq!(request.all("impersonate-user").collect::<Vec<_>>(), ["ana@example.com"]);
    assert_eq!(request.all("impersonate-group").collect::<Vec<_>>(), ["developers", "view"]);
    assert!(
        request.headers.iter().all(|(name, _)| !name.to_ascii_lowercase().starts_with("x-forwarded-")),
        "{request:?}"
    );
    assert!(!String::from_utf8_lossy(&request.head).contains("tok-123"), "the user's session stays outside");
    // Tokens rotate.
    write(cluster.account.path().join("token"), "service-account-2");
    visitor.get("/api").unwrap();
    let request = cluster.api.seen().requests.pop().unwrap();
    assert_eq!(request.header("authorization"), Some("Bearer service-account-2"));
    assert_eq!(cluster.api.seen().accepted, 1, "one connection did for both");
    // Nobody is impersonated without a name.
    let nobody = User { email: String::new(), ..User::default() };
    let answer = cluster.scene.visitor_of(cluster.resource()).by(nobody).get("/api").unwrap();
    assert_eq!(answer.status, 403);
    // Without a token there is nobody to ask as.
    std::fs::remove_file(cluster.account.path().join("token")).unwrap();
    assert_eq!(visitor.get("/api").unwrap().status, 502);
    cluster.scene.still_serves();
}

#[test]
fn a_cluster_resource_of_an_agent_outside_any_cluster_is_a_502_and_a_403_without_a_name() {
    let api = Target::http(&Network::Host).unwrap();
    let port = api.address().port();
    let scene =
        Scene::with(|_| format!("  - {{name: k8s, type: kubernetes, hostname: localhost, port: {port}}}\n")).opened();
    let resource = || Resource::kubernetes("localhost", Some(port));
    let answer = scene.visitor_of(resource()).get("/api").unwrap();
    assert_eq!(answer.status, 502);
    let nobody = User { email: String::new(), ..User::default() };
    assert_eq!(scene.visitor_of(resource()).by(nobody).get("/api").unwrap().status, 403);
    // Impersonation that a client asks for by itself reaches nobody.
    let mut plain = scene.visitor_of(resource()).head("GET", "/api", &[]);
    plain = plain.replace("X-Forwarded-K8s-Groups: developers,view\r\n", "Connection: close\r\n");
    let answer = scene.raw(plain);
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(api.seen().accepted, 0, "the token is not sent to whom ever, and never in plain text");
}
