//! What waits for a socket to take it: a bounded queue that is written in batches, and the goodbye.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use manyhands_proto::Code;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};

/// How long a client is given to take our last frames and to answer the close.
const GOODBYE_MAX: Duration = Duration::from_secs(3);
/// Most bytes that a server's frame adds to its message.
const HEADER_BYTES_MAX: usize = 10;

/// The messages on their way to one socket. Their number is bounded by the session machine, which is told the
/// level and ends a session that does not read.
pub(crate) struct Outgoing<S> {
    sink: SplitSink<WebSocketStream<Metered<S>>, Message>,
    queue: VecDeque<Message>,
    queued_bytes: usize,
    /// Bytes given to the sink so far, as the meter counts them.
    given: u64,
    meter: Arc<AtomicU64>,
    blocked: bool,
}

/// How a session ends.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Goodbye {
    /// We close, for a reason from the table.
    Close(Code, String),
    /// The client closed; the answer is on its way.
    Answered,
    /// Nobody is there.
    Gone,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Outgoing<S> {
    pub(crate) fn new(
        sink: SplitSink<WebSocketStream<Metered<S>>, Message>,
        meter: Arc<AtomicU64>,
    ) -> Outgoing<S> {
        Outgoing { sink, queue: VecDeque::new(), queued_bytes: 0, given: 0, meter, blocked: false }
    }

    /// Puts a message at the end.
    pub(crate) fn push(&mut self, message: Message) {
        self.queued_bytes += message.len() + HEADER_BYTES_MAX;
        self.queue.push_back(message);
    }

    /// Bytes that the kernel has not taken yet.
    pub(crate) fn level(&self) -> usize {
        let buffered = self.given.saturating_sub(self.meter.load(Ordering::Relaxed));
        self.queued_bytes + usize::try_from(buffered).unwrap_or(usize::MAX)
    }

    /// Writes until all is written, or until a part is and the socket takes no more for now. Several messages
    /// go in one write. May be dropped at any time and called again.
    pub(crate) async fn write(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_write(context)).await
    }

    fn poll_write(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        while !self.queue.is_empty() {
            match self.sink.poll_ready_unpin(context) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.blocked = true;
                    return Poll::Pending;
                }
            }
            if std::mem::take(&mut self.blocked) {
                // What was stuck has gone: worth telling before more is given.
                return Poll::Ready(Ok(()));
            }
            if let Some(message) = self.queue.pop_front() {
                let bytes = message.len() + HEADER_BYTES_MAX;
                self.queued_bytes -= bytes;
                self.given += bytes as u64;
                self.sink.start_send_unpin(message)?;
            }
        }
        ready!(self.sink.poll_flush_unpin(context))?;
        self.blocked = false;
        self.given = self.meter.load(Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }

    /// Ends the connection: writes what is left and the close frame, with `close` as its code, then waits for the client's answer.
    pub(crate) async fn close(
        mut self,
        goodbye: Goodbye,
        close: u16,
        mut incoming: SplitStream<WebSocketStream<Metered<S>>>,
    ) {
        let farewell = async {
            match goodbye {
                Goodbye::Gone => return,
                Goodbye::Answered => {}
                Goodbye::Close(code, reason) => {
                    if code == Code::SlowConsumer {
                        // It does not read; the close frame alone may still fit.
                        self.queue.clear();
                        self.queued_bytes = 0;
                    }
                    let frame = CloseFrame { code: close.into(), reason: reason.into() };
                    self.push(Message::Close(Some(frame)));
                }
            }
            while self.level() > 0 {
                if self.write().await.is_err() {
                    return;
                }
            }
            // The close handshake: the client's answer ends the stream. What it still sends is not read any more.
            while let Some(Ok(_)) = incoming.next().await {}
        };
        let _ = tokio::time::timeout(GOODBYE_MAX, farewell).await;
    }
}

/// A stream that counts what it has written.
pub(crate) struct Metered<S> {
    stream: S,
    written: Arc<AtomicU64>,
}

impl<S> Metered<S> {
    pub(crate) fn new(stream: S) -> Metered<S> {
        Metered { stream, written: Arc::default() }
    }

    /// Bytes that the stream has taken so far.
    pub(crate) fn meter(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.written.fetch_add(count as u64, Ordering::Relaxed);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
