//! A stand-in for the hub on loopback: a listing, files by commit, and, on another port, the store that large files
//! come from. Behaves as the public hub does (relative redirects for small files, signed ones to the store for large
//! ones, Range), keeps a log of what it was asked, and can be told to misbehave for single requests.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, SHA256, digest};

pub const COMMIT: &str = "89abcdef0123456789abcdef0123456789abcdef";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Hub,
    Store,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub place: Place,
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn offset(&self) -> usize {
        let range = self.header("range").and_then(|text| text.strip_prefix("bytes="));
        range.and_then(|text| text.strip_suffix('-')).map_or(0, |text| text.parse().unwrap())
    }
}

#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    /// Close after so many bytes of the body.
    pub cut: Option<usize>,
    /// Pause in the middle of the body.
    pub pause: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Changes the reply to one request.
pub type Twist = Box<dyn Fn(&Request, Reply) -> Reply + Send + Sync>;

/// The repository `o/n` with its files; those above 1 KiB count as large.
struct Site {
    files: Vec<(String, Vec<u8>)>,
    store: String,
    log: Mutex<Vec<(Request, usize)>>,
    twist: Mutex<Twist>,
}

/// A running hub; its threads end with the test process.
pub struct StandIn {
    pub endpoint: String,
    site: Arc<Site>,
}

impl StandIn {
    pub fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let hub = TcpListener::bind("127.0.0.1:0").unwrap();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let site = Arc::new(Site {
            files: files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect(),
            store: format!("http://{}", store.local_addr().unwrap()),
            log: Mutex::default(),
            twist: Mutex::new(Box::new(|_, reply| reply)),
        });
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        for (listener, place) in [(hub, Place::Hub), (store, Place::Store)] {
            let site = site.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let site = site.clone();
                    // A client that hangs up in the middle is no fault of the server's.
                    std::thread::spawn(move || site.answer(stream, place).ok());
                }
            });
        }
        Self { endpoint, site }
    }

    pub fn twist(&self, twist: impl Fn(&Request, Reply) -> Reply + Send + Sync + 'static) {
        *self.site.twist.lock().unwrap() = Box::new(twist);
    }

    /// What was asked since the last call, with the bytes of body sent for each.
    pub fn take_log(&self) -> Vec<(Request, usize)> {
        std::mem::take(&mut self.site.log.lock().unwrap())
    }
}

impl Site {
    fn answer(&self, stream: TcpStream, place: Place) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().transpose()?.unwrap_or_default();
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        for line in lines {
            let line = line?;
            match line.split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => break,
            }
        }
        let request = Request { place, method, path, headers };
        let reply = (self.twist.lock().unwrap())(&request, self.plain(&request));
        self.send(stream, request, &reply)
    }

    fn send(&self, mut stream: TcpStream, request: Request, reply: &Reply) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
        if !reply.headers.iter().any(|(name, _)| *name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", reply.body.len());
        }
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        let sent =
            if request.method == "HEAD" { 0 } else { reply.cut.unwrap_or(reply.body.len()).min(reply.body.len()) };
        self.log.lock().unwrap().push((request, sent));
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let (before, after) = reply.body[..sent].split_at(sent / 2);
        stream.write_all(before)?;
        std::thread::sleep(reply.pause);
        stream.write_all(after)
    }

    fn plain(&self, request: &Request) -> Reply {
        let path = request.path.as_str();
        if path.starts_with("/api/models/o/n/revision/") {
            let siblings: Vec<_> =
                self.files.iter().map(|(name, _)| serde_json::json!({ "rfilename": name })).collect();
            let body = serde_json::json!({ "id": "o/n", "sha": COMMIT, "siblings": siblings });
            return Reply { body: body.to_string().into_bytes(), ..Reply::status(200) };
        }
        let resolved = path.strip_prefix("/o/n/resolve/");
        let resolved = resolved.and_then(|rest| rest.strip_prefix(COMMIT).or(rest.strip_prefix("main")));
        let resolved = resolved.and_then(|rest| rest.strip_prefix('/'));
        let cached = path.strip_prefix("/api/resolve-cache/");
        let stored = path.strip_prefix("/signed/");
        let name = resolved.or(cached).or(stored).unwrap_or_default();
        let Some((_, bytes)) = self.files.iter().find(|(file, _)| file == name) else {
            return Reply::status(404).with("X-Error-Code", "RepoNotFound");
        };
        match (resolved, bytes.len() > 1024) {
            (Some(_), true) => Reply::status(302)
                .with("X-Repo-Commit", COMMIT)
                .with("X-Linked-Etag", format!("\"{}\"", sha256(bytes)))
                .with("X-Linked-Size", bytes.len().to_string())
                .with("ETag", "\"of-the-redirect\"")
                .with("Location", format!("{}/signed/{name}", self.store)),
            (Some(_), false) => {
                Reply::status(307).with("X-Repo-Commit", COMMIT).with("Location", format!("/api/resolve-cache/{name}"))
            }
            (None, _) => {
                let offset = request.offset();
                let range = format!("bytes {offset}-{}/{}", bytes.len().saturating_sub(1), bytes.len());
                let reply = match offset {
                    0 => Reply::status(200),
                    _ => Reply::status(206).with("Content-Range", range),
                };
                Reply {
                    body: bytes[offset..].to_vec(),
                    ..reply.with("X-Repo-Commit", COMMIT).with("ETag", format!("W/\"{}\"", git_sha1(bytes)))
                }
            }
        }
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

pub fn git_sha1(bytes: &[u8]) -> String {
    let blob = [format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat();
    hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, &blob).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
