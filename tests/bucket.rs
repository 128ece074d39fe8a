//! A stand-in for an S3 bucket on this machine: objects in memory, entity tags, conditional writes, listings. It speaks just enough of the
//! protocol for one client, and checks no signature.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

type Objects = Arc<Mutex<BTreeMap<String, (Vec<u8>, u64)>>>;

/// A bucket that serves until the test ends.
pub struct Bucket {
    pub endpoint: String,
    objects: Objects,
    log: Arc<Mutex<Vec<String>>>,
}

impl Bucket {
    pub fn start() -> Bucket {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let (objects, log) = (Objects::default(), Arc::new(Mutex::new(Vec::new())));
        let (served, heard) = (objects.clone(), log.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (objects, log) = (served.clone(), heard.clone());
                std::thread::spawn(move || serve(stream, &objects, &log));
            }
        });
        Bucket { endpoint, objects, log }
    }

    /// Keys of all objects.
    pub fn keys(&self) -> Vec<String> {
        self.objects.lock().expect("lock").keys().cloned().collect()
    }

    /// Changes an object behind the client's back.
    pub fn set(&self, key: &str, bytes: Vec<u8>) {
        put(&self.objects, key, bytes);
    }

    pub fn get(&self, key: &str) -> Vec<u8> {
        self.objects.lock().expect("lock")[key].0.clone()
    }

    /// Requests so far, "PUT key if-match" and the like.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("lock").clone()
    }
}

fn put(objects: &Objects, key: &str, bytes: Vec<u8>) -> u64 {
    let mut objects = objects.lock().expect("lock");
    let tag = objects.values().map(|(_, tag)| tag + 1).max().unwrap_or(1);
    objects.insert(key.to_owned(), (bytes, tag));
    tag
}

fn serve(mut stream: TcpStream, objects: &Objects, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().expect("clones"));
    let mut first = String::new();
    if reader.read_line(&mut first).unwrap_or(0) == 0 {
        return;
    }
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("a header");
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).replace("%7E", "~");
    let condition = |name: &str| headers.get(name).cloned();
    let said = ["if-match", "if-none-match"].iter().filter(|h| headers.contains_key(**h)).copied();
    log.lock().expect("lock").push(format!("{method} {key} {}", said.collect::<Vec<_>>().join(" ")).trim().to_owned());
    let there = objects.lock().expect("lock").get(&key).cloned();
    let tag = there.as_ref().map(|(_, tag)| format!("\"{tag}\""));
    let answer = |status: &str, more: &str, body: &[u8]| {
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\nConnection: close\r\n{more}\r\n",
            body.len()
        );
        [head.as_bytes(), body].concat()
    };
    let out = match (method, there) {
        ("PUT", there) => {
            let taken = condition("if-none-match").is_some() && there.is_some();
            let moved = condition("if-match").is_some_and(|wanted| tag.as_ref() != Some(&wanted));
            if taken || moved {
                answer("412 Precondition Failed", "", b"<Error><Code>PreconditionFailed</Code></Error>")
            } else {
                let tag = put(objects, &key, body);
                answer("200 OK", &format!("ETag: \"{tag}\"\r\n"), b"")
            }
        }
        ("GET", _) if query.contains("list-type=2") => {
            let prefix = query.split('&').find_map(|p| p.strip_prefix("prefix=")).unwrap_or_default().replace("%2F", "/");
            let objects = objects.lock().expect("lock");
            let entry = |(key, (bytes, tag)): (&String, &(Vec<u8>, u64))| {
                format!(
                    "<Contents><Key>{key}</Key><Size>{}</Size><ETag>\"{tag}\"</ETag>\
                     <LastModified>2030-01-01T00:00:00.000Z</LastModified></Contents>",
                    bytes.len()
                )
            };
            let listed: String = objects.iter().filter(|(k, _)| k.starts_with(&prefix)).map(entry).collect();
            let xml = format!("<ListBucketResult><IsTruncated>false</IsTruncated>{listed}</ListBucketResult>");
            answer("200 OK", "", xml.as_bytes())
        }
        (_, None) => answer("404 Not Found", "", b"<Error><Code>NoSuchKey</Code></Error>"),
        ("HEAD", Some((bytes, tag))) => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nETag: \"{tag}\"\r\nLast-Modified: Tue, 01 Jan 2030 00:00:00 GMT\r\n\
             Connection: close\r\n\r\n",
            bytes.len()
        )
        .into_bytes(),
        (_, Some((bytes, tag))) => answer("200 OK", &format!("ETag: \"{tag}\"\r\n"), &bytes),
    };
    // A client that has gone is not ours to judge.
    let _ = stream.write_all(&out);
}
