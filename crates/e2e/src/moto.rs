//! A server that answers as S3 does, on this host, with one bucket.

use crate::cluster::until;
use crate::{expect, python_program};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// The bucket.
pub const BUCKET: &str = "surgeon";

/// The server; it ends when this is dropped.
#[derive(Debug)]
pub struct Moto {
    server: Child,
    port: u16,
}

impl Moto {
    /// Starts the server, which logs to `folder`, and makes the bucket.
    ///
    /// # Panics
    /// When it does not start.
    pub fn start(folder: &Path) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = free.unwrap_or_else(|e| panic!("no free port: {e}")).port();
        let log = std::fs::File::create(folder.join("moto.log")).unwrap_or_else(|e| panic!("moto's log: {e}"));
        let mut command = Command::new(python_program("moto", "moto_server"));
        command.args(["--host", "127.0.0.1", "--port", &port.to_string()]).stdout(Stdio::null()).stderr(log);
        let server = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let moto = Self { server, port };
        assert!(until(|| TcpStream::connect(("127.0.0.1", port)).ok()).is_some(), "moto does not start");
        let program = format!(
            "import boto3; boto3.client('s3', endpoint_url='http://127.0.0.1:{port}').create_bucket(Bucket='{BUCKET}')"
        );
        let mut python = Command::new(python_program("moto", "python"));
        python.args(["-c", &program]).envs([
            ("AWS_DEFAULT_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
        ]);
        expect(&mut python, 0);
        moto
    }

    /// Returns where it listens.
    pub fn port(&self) -> u16 {
        self.port
    }
}

/// Returns the variables that have a service's store at this port.
pub fn variables(endpoint: &str) -> [(&str, &str); 5] {
    [
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ]
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.server.kill(); // it may have ended
        let _ = self.server.wait();
    }
}
