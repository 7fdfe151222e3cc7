//! Stands between a client and a real HTTP API, and spoils the answers on the way as the file MODE says at that moment.
//! Requests go through unchanged; each is a line on standard output: the mode and the request line.
//!
//! ```text
//! faulty LISTEN UPSTREAM MODE-FILE
//! ```
//!
//! | mode | the client gets |
//! |---|---|
//! | `pass` | the answer |
//! | `status 429`, `status 500`, … | that status, and the API is not asked |
//! | `html` | 200 with a page to log in, and the API is not asked |
//! | `slow` | the answer's head, and then a byte in each second |
//! | `truncate` | half of the body, then the end of the stream |
//! | `reset` | half of the body, then a reset |
//! | `huge` | a head that promises 10 GB, and blanks without end |
//! | `index N` | the answer with `X-Consul-Index: N`, its body unchanged |
//! | `garbage` | bytes that are no HTTP |

use std::{
    fs,
    io::{self, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, mode] = args.as_slice() else {
        eprintln!("usage: faulty LISTEN UPSTREAM MODE-FILE");
        return ExitCode::from(2);
    };
    let listener = match TcpListener::bind(listen) {
        Ok(listener) => listener,
        Err(e) => {
            eprintln!("faulty: {listen}: {e}");
            return ExitCode::FAILURE;
        }
    };
    println!("listening");
    for client in listener.incoming().flatten() {
        let (upstream, mode) = (upstream.clone(), PathBuf::from(mode));
        // What a client or the API breaks off is their business.
        std::thread::spawn(move || drop(serve(client, &upstream, &mode)));
    }
    ExitCode::SUCCESS
}

/// One message: its head without the empty line, and its body.
struct Message {
    head: Vec<String>,
    body: Vec<u8>,
}

impl Message {
    /// `None` at the end of the stream.
    fn read(from: &mut impl io::BufRead) -> io::Result<Option<Self>> {
        let mut head = Vec::new();
        loop {
            let mut line = String::new();
            if from.read_line(&mut line)? == 0 {
                return Ok(None);
            }
            let line = line.trim_end().to_owned();
            if line.is_empty() {
                break;
            }
            head.push(line);
        }
        let mut message = Self { head, body: Vec::new() };
        if message.header("transfer-encoding").is_some_and(|v| v == "chunked") {
            message.body = read_chunks(from)?;
            message.head.retain(|line| !line.to_lowercase().starts_with("transfer-encoding:"));
        } else if let Some(length) = message.header("content-length").and_then(|v| v.parse().ok()) {
            message.body = vec![0; length];
            from.read_exact(&mut message.body)?;
        }
        message.head.retain(|line| !line.to_lowercase().starts_with("content-length:"));
        Ok(Some(message))
    }

    fn header(&self, name: &str) -> Option<String> {
        let mut fields = self.head.iter().skip(1).filter_map(|line| line.split_once(':'));
        fields.find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned())
    }

    fn head(&self, length: u64) -> String {
        format!("{}\r\nContent-Length: {length}\r\n\r\n", self.head.join("\r\n"))
    }

    fn write(&self, to: &mut TcpStream) -> io::Result<()> {
        to.write_all(self.head(self.body.len() as u64).as_bytes())?;
        to.write_all(&self.body)
    }
}

fn read_chunks(from: &mut impl io::BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut size = String::new();
        from.read_line(&mut size)?;
        let size = usize::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        from.read_exact(&mut chunk)?;
        if size == 0 {
            return Ok(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

fn serve(mut client: TcpStream, upstream: &str, mode: &Path) -> io::Result<()> {
    let mut requests = BufReader::new(client.try_clone()?);
    let mut api = TcpStream::connect(upstream)?;
    let mut answers = BufReader::new(api.try_clone()?);
    while let Some(request) = Message::read(&mut requests)? {
        let mode = || fs::read_to_string(mode).unwrap_or_default().trim().to_owned();
        let now = mode();
        println!("{now}: {}", request.head[0]);
        if let Some(status) = now.strip_prefix("status ") {
            write!(client, "HTTP/1.1 {status} Fault\r\nContent-Length: 9\r\n\r\nby faulty")?;
            continue;
        }
        if now == "html" {
            let page = "<html><body>Please log in</body></html>";
            let length = page.len();
            write!(
                client,
                "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {length}\r\n\r\n{page}"
            )?;
            continue;
        }
        request.write(&mut api)?;
        let Some(answer) = Message::read(&mut answers)? else { return Ok(()) };
        // A question may have waited for minutes.
        if !spoil(answer, &mode(), &mut client)? {
            return Ok(());
        }
    }
    Ok(())
}

/// Answers as `mode` says; returns whether the connection can be used again.
fn spoil(mut answer: Message, mode: &str, client: &mut TcpStream) -> io::Result<bool> {
    let half = answer.body.len() / 2;
    let length = answer.body.len() as u64;
    match mode {
        "slow" => {
            client.write_all(answer.head(length.max(60)).as_bytes())?;
            for byte in answer.body.iter().chain(std::iter::repeat(&b' ')) {
                std::thread::sleep(Duration::from_secs(1));
                client.write_all(&[*byte])?;
            }
        }
        "truncate" | "reset" => {
            client.write_all(answer.head(length.max(2)).as_bytes())?;
            client.write_all(&answer.body[..half])?;
            if mode == "reset" {
                socket2::SockRef::from(&*client).set_linger(Some(Duration::ZERO))?;
            }
        }
        "huge" => {
            client.write_all(answer.head(10_000_000_000).as_bytes())?;
            while client.write_all(&[b' '; 64 * 1024]).is_ok() {}
        }
        "garbage" => client.write_all(b"SSH-2.0-OpenSSH_9.2\r\n")?,
        other => {
            if let Some(index) = other.strip_prefix("index ") {
                answer.head.retain(|line| !line.to_lowercase().starts_with("x-consul-index:"));
                answer.head.push(format!("X-Consul-Index: {index}"));
            }
            answer.write(client)?;
            return Ok(true);
        }
    }
    Ok(false)
}
