//! An SSH agent with keys from files: lists them and signs with them, and nothing else
//! (draft-miller-ssh-agent, the two requests that authentication needs).

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream, ReadBuf};

use super::key::Key;
use super::wire::{Reader, put};
use crate::error::Result;
use crate::task::Owned;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES: u8 = 12;
const SIGN: u8 = 13;
const SIGNATURE: u8 = 14;

/// The longest request, in bytes; OpenSSH's limit.
const MAX_REQUEST: u32 = 256 << 10;

/// A connection to an agent of this process, which serves it as long as it lives.
#[derive(Debug)]
pub(super) struct Served {
    io: DuplexStream,
    _agent: Owned<()>,
}

impl Served {
    pub(super) fn new(io: DuplexStream, keys: Arc<Vec<Key>>, theirs: DuplexStream) -> Self {
        let agent = Owned::spawn(async move {
            // A client that breaks off, or says nonsense, sees the end of the connection.
            let _ = serve(theirs, &keys).await;
        });
        Self { io, _agent: agent }
    }
}

async fn serve(mut io: impl AsyncRead + AsyncWrite + Unpin, keys: &[Key]) -> std::io::Result<()> {
    loop {
        let length = match io.read_u32().await {
            Ok(length) if (1..=MAX_REQUEST).contains(&length) => length,
            _ => return Ok(()),
        };
        let mut request = vec![0; usize::try_from(length).unwrap_or_default()];
        io.read_exact(&mut request).await?;
        let answer = answer(&request, keys).unwrap_or_else(|_| vec![FAILURE]);
        let mut framed = Vec::new();
        put(&mut framed, &answer);
        io.write_all(&framed).await?;
        io.flush().await?;
    }
}

fn answer(request: &[u8], keys: &[Key]) -> Result<Vec<u8>> {
    let mut fields = Reader(request);
    match fields.byte()? {
        REQUEST_IDENTITIES => {
            let mut out = vec![IDENTITIES];
            out.extend_from_slice(&u32::try_from(keys.len()).unwrap_or(u32::MAX).to_be_bytes());
            for key in keys {
                put(&mut out, &key.public);
                put(&mut out, &key.comment);
            }
            Ok(out)
        }
        SIGN => {
            let (public, data, flags) = (fields.string()?, fields.string()?, fields.number()?);
            let key = keys.iter().find(|key| key.public == public);
            Ok(key.and_then(|key| key.sign(data, flags)).map_or_else(
                || vec![FAILURE],
                |signature| {
                    let mut out = vec![SIGNATURE];
                    put(&mut out, &signature);
                    out
                },
            ))
        }
        _ => Ok(vec![FAILURE]),
    }
}

impl AsyncRead for Served {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Served {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_make_no_sense_are_refused() {
        for request in [&[][..], &[99], &[SIGN], &[SIGN, 0, 0, 0, 9]] {
            assert!(answer(request, &[]).map_or(true, |answer| answer == [FAILURE]), "{request:?}");
        }
        assert_eq!(answer(&[REQUEST_IDENTITIES], &[]).unwrap(), [IDENTITIES, 0, 0, 0, 0]);
    }
}
