//! What moving factors from a calibrator to a surgeon costs: seconds, and CPU-seconds a GB on either side, over loopback, without
//! and with TLS, beside the same bytes through a bare TCP socket in the same run: into one warm buffer, into memory of their own
//! that stays until the block is whole (as every receiver of factors must keep them), and with the same checksums.
//!
//! `bench_net` measures and prints; it starts itself as the sending process (`bench_net send HOW GIBIBYTES FOLDER`).

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use service::listen::{Address, Listener, Plain};
use service::tls::{Tls, TlsArgs};
use service::{Connector, MemoryNetwork};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;
use types::RunId;

/// One block's packed factors: those of a FFN's consumer in Llama-2-7B are 231 MiB.
const BLOCK: usize = 128 << 20;
/// Bytes that one write or read of the bare socket moves.
const PIECE: usize = 1 << 20;
const RUN: &str = "r-bench";
const ROUNDS: usize = 5;
/// Ways from one process to the other, by the word that asks for them.
const WAYS: [(&str, &str); 6] = [
    ("socket", "bare TCP socket, into one buffer"),
    ("socket-kept", "bare socket, each block kept until it is whole"),
    ("socket-summed", "bare socket, CRC32C and BLAKE3 on both sides"),
    ("socket-kept-summed", "bare socket, kept, CRC32C and BLAKE3"),
    ("plain", "`StreamFactors` (kept, CRC32C, BLAKE3)"),
    ("tls", "`StreamFactors`, mTLS"),
];

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["send", how, blocks, folder] => send(how, blocks.parse()?, Path::new(folder)),
        [] => measure(8),
        [gibibytes] => measure(gibibytes.parse::<u32>()? * 8),
        _ => bail!("usage: bench_net [GIBIBYTES]"),
    }
}

/// CPU time of this process so far, in seconds.
fn cpu() -> Result<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| -> Result<f64> { Ok(fields.get(at).context("no CPU time in /proc/self/stat")?.parse()?) };
    Ok((ticks(11)? + ticks(12)?) / 100.0)
}

fn block() -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let words = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    Bytes::from(words.take(BLOCK / 8).flatten().collect::<Vec<u8>>())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn tls(folder: &Path, name: &str) -> TlsArgs {
    let file = |what: &str| Some(folder.join(format!("{name}.{what}")));
    TlsArgs { tls_cert: file("pem"), tls_key: file("key"), tls_ca: Some(folder.join("ca.pem")) }
}

/// Writes certificates for both ends.
fn issue(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(folder.join("ca.pem"), authority.pem())?;
    for name in ["sender", "receiver"] {
        let key = KeyPair::generate()?;
        let signed = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &authority)?;
        std::fs::write(folder.join(format!("{name}.pem")), signed.pem())?;
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

/// The sending process: says where it listens, sends, says what CPU that took.
fn send(how: &str, blocks: u32, folder: &Path) -> Result<()> {
    let block = block();
    if how.starts_with("socket") {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        tell(&listener.local_addr()?.to_string())?;
        let (mut stream, _) = listener.accept()?;
        let start = cpu()?;
        for _ in 0..blocks {
            if is_summed(how) {
                std::hint::black_box(blake3::hash(&block));
            }
            for at in (0..BLOCK).step_by(PIECE) {
                let piece = block.slice(at..at + PIECE);
                if is_summed(how) {
                    std::hint::black_box(service::transfer::crc32c(std::slice::from_ref(&piece)));
                }
                stream.write_all(&piece)?;
            }
        }
        drop(stream);
        return tell(&(cpu()? - start).to_string());
    }
    runtime()?.block_on(async {
        let secured = if how == "tls" { Tls::open(&tls(folder, "sender"))? } else { None };
        let address: Address = "127.0.0.1:0".parse().map_err(anyhow::Error::msg)?;
        let listener = Listener::bind(&address, secured, Plain::Local).await?;
        tell(&listener.endpoint().context("no endpoint")?)?;
        let start = cpu()?;
        calibrator::measure::serve_factors(RunId::new(RUN)?, block, blocks, listener.incoming()).await?;
        tell(&(cpu()? - start).to_string())
    })
}

fn tell(line: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

fn is_summed(how: &str) -> bool {
    how.ends_with("summed")
}

/// Receives from a bare socket; returns how many bytes came.
fn receive(stream: &mut TcpStream, how: &str) -> Result<u64> {
    let keeps = how.contains("kept");
    let (mut piece, mut kept) = (Vec::with_capacity(PIECE), Vec::new());
    let (mut bytes, mut hasher) = (0, blake3::Hasher::new());
    loop {
        piece.clear();
        let read = Read::by_ref(stream).take(PIECE as u64).read_to_end(&mut piece)?;
        if read == 0 {
            return Ok(bytes);
        }
        bytes += read as u64;
        let came = Bytes::from(std::mem::take(&mut piece));
        if is_summed(how) {
            std::hint::black_box(service::transfer::crc32c(std::slice::from_ref(&came)));
            hasher.update(&came);
        }
        if keeps {
            kept.push(came);
            piece = Vec::with_capacity(PIECE);
        } else {
            piece = came.into();
        }
        if bytes % BLOCK as u64 == 0 {
            kept.clear();
            std::hint::black_box(hasher.finalize());
            hasher.reset();
        }
    }
}

/// What one transfer took.
#[derive(Debug, Clone, Copy)]
struct Cost {
    seconds: f64,
    sender: f64,
    receiver: f64,
}

fn transfer(how: &str, blocks: u32, folder: &Path) -> Result<Cost> {
    let mut sender = Command::new(std::env::current_exe()?)
        .args(["send", how, &blocks.to_string()])
        .arg(folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut said = BufReader::new(sender.stdout.take().context("no standard output")?).lines();
    let endpoint = said.next().context("the sender ended")??;
    let (start, before) = (Instant::now(), cpu()?);
    let bytes = if how.starts_with("socket") {
        receive(&mut TcpStream::connect(&endpoint)?, how)?
    } else {
        runtime()?.block_on(async {
            let secured = if how == "tls" { Tls::open(&tls(folder, "receiver"))? } else { None };
            let connector = Connector::new(MemoryNetwork::new()).between_hosts(secured, Plain::Local, None);
            let run = RunId::new(RUN)?;
            // As surgeons do: a task of its own runs where the connection's does, while what came is in that core's cache.
            let receiving = async move { surgeon::measure::receive_factors(&connector, &endpoint, &run, blocks).await };
            Ok::<_, anyhow::Error>(tokio::spawn(receiving).await??)
        })?
    };
    let (seconds, receiver) = (start.elapsed().as_secs_f64(), cpu()? - before);
    if bytes != u64::from(blocks) * BLOCK as u64 {
        bail!("{bytes} bytes came");
    }
    let sender_cpu: f64 = said.next().context("the sender told no CPU time")??.parse()?;
    sender.wait()?;
    let gigabytes = bytes as f64 / 1e9;
    Ok(Cost { seconds: seconds / gigabytes, sender: sender_cpu / gigabytes, receiver: receiver / gigabytes })
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

#[expect(clippy::print_stdout, reason = "the figures")]
fn measure(blocks: u32) -> Result<()> {
    let folder = tempfile::tempdir()?;
    issue(folder.path())?;
    let mut costs = vec![Vec::new(); WAYS.len()];
    for _ in 0..ROUNDS {
        // In turns, so that what else the machine does falls on all alike.
        for ((way, _), costs) in WAYS.iter().zip(&mut costs) {
            costs.push(transfer(way, blocks, folder.path())?);
        }
    }
    let size = f64::from(blocks) * BLOCK as f64 / 1e9;
    println!("{size:.1} GB in blocks of {} MiB over loopback, medians of {ROUNDS} in turns", BLOCK >> 20);
    println!(
        "| way | s/GB | CPU s/GB, sender | receiver | both, against the socket | against the socket that does the same |"
    );
    println!("|---|---|---|---|---|---|");
    let of = |costs: &[Cost], part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
    let both = |costs: &[Cost]| of(costs, |c| c.sender + c.receiver);
    let (bare, same) = (both(&costs[0]), both(&costs[3]));
    for ((_, name), costs) in WAYS.iter().zip(&costs) {
        let (seconds, sender, receiver) =
            (of(costs, |c| c.seconds), of(costs, |c| c.sender), of(costs, |c| c.receiver));
        let (against_bare, against_same) = (both(costs) / bare, both(costs) / same);
        println!("| {name} | {seconds:.2} | {sender:.2} | {receiver:.2} | x {against_bare:.2} | x {against_same:.2} |");
    }
    Ok(())
}
