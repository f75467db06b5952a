package wire

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// Window is how many bytes of one stream may be on the way or queued, unconsumed, at any time: enough for some
// 250 MB/s at 1 ms of delay, and little enough that a hundred commands hold some 75 MB at worst.
const Window = 256 << 10

// creditStep is how much a receiver lets gather before it gives credit back; it keeps the sender busy and the
// number of frames small.
const creditStep = Window / 4

// ErrWindow means that the other end ignores flow control. Its session cannot go on.
var ErrWindow = errors.New("flow control window exceeded")

// Gate is the sender's side of a stream's window.
type Gate struct {
	mu     sync.Mutex
	cond   sync.Cond
	avail  int  // under mu
	closed bool // under mu
}

// NewGate returns a gate with a full window.
func NewGate() *Gate {
	g := &Gate{avail: Window}
	g.cond.L = &g.mu
	return g
}

// Take waits until something may be sent and takes at most limit bytes of it. It returns false once the gate is closed.
func (g *Gate) Take(limit int) (int, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.avail == 0 && !g.closed {
		g.cond.Wait()
	}
	if g.closed {
		return 0, false
	}
	n := min(limit, g.avail)
	g.avail -= n
	return n, true
}

// Give returns n bytes to the window, as the other end's Credit frame says. More than was taken is ErrWindow.
func (g *Gate) Give(n uint32) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if uint64(g.avail)+uint64(n) > Window {
		return fmt.Errorf("%w: credit for %d bytes, %d are out", ErrWindow, n, Window-g.avail)
	}
	g.avail += int(n)
	g.cond.Broadcast()
	return nil
}

// Close releases all who wait in Take.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.cond.Broadcast()
}

// Inbox is the receiver's side of a stream: a queue of at most Window bytes between the reader of a link, who must
// not wait, and the consumer, who may.
type Inbox struct {
	mu     sync.Mutex
	cond   sync.Cond
	buf    []byte // under mu; a ring of Window bytes, made at the first Put
	head   int    // under mu
	n      int    // under mu; bytes queued
	eof    bool   // under mu
	closed bool   // under mu
	owed   int    // consumer's; consumed and not yet credited
}

// NewInbox returns an empty inbox.
func NewInbox() *Inbox {
	b := &Inbox{}
	b.cond.L = &b.mu
	return b
}

// Put queues p. It never waits: what exceeds the window is ErrWindow. Bytes after EOF or Abort are dropped.
func (b *Inbox) Put(p []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.eof || b.closed {
		return nil
	}
	if len(p) > Window-b.n {
		return ErrWindow
	}
	if b.buf == nil {
		b.buf = make([]byte, Window)
	}
	tail := (b.head + b.n) % Window
	n := copy(b.buf[tail:], p)
	copy(b.buf, p[n:])
	b.n += len(p)
	b.cond.Broadcast()
	return nil
}

// EOF marks the end of the stream; what is queued can still be read.
func (b *Inbox) EOF() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.eof = true
	b.cond.Broadcast()
}

// Abort drops what is queued and ends the stream for its reader.
func (b *Inbox) Abort() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed, b.n = true, 0
	b.cond.Broadcast()
}

// Read waits for bytes and takes them; io.EOF ends the stream, io.ErrClosedPipe an aborted one. Only one goroutine reads.
func (b *Inbox) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.n == 0 && !b.eof && !b.closed {
		b.cond.Wait()
	}
	switch {
	case b.closed:
		return 0, io.ErrClosedPipe
	case b.n == 0:
		return 0, io.EOF
	}
	n := min(len(p), b.n)
	k := copy(p[:n], b.buf[b.head:])
	copy(p[k:n], b.buf)
	b.head = (b.head + n) % Window
	b.n -= n
	return n, nil
}

// Consumed notes that n bytes are done with and returns how many to give back with a Credit frame now, or zero.
// It belongs to the goroutine that reads.
func (b *Inbox) Consumed(n int) int {
	b.owed += n
	if b.owed < creditStep {
		return 0
	}
	c := b.owed
	b.owed = 0
	return c
}

// Send reads r until its end and puts it on the link as Data frames of one stream, within the window, then an EOF
// frame. It returns r's error when that is not io.EOF, the link's, or nil, also when the gate was closed.
func Send(w *Writer, session uint32, s Stream, g *Gate, r io.Reader) error {
	var buf [MaxPayload]byte
	for {
		// The credit is taken before the read: what was read from a terminal or a pipe cannot be put back.
		limit, ok := g.Take(len(buf))
		if !ok {
			return nil
		}
		n, err := r.Read(buf[:limit])
		if n < limit {
			if e := g.Give(uint32(limit - n)); e != nil {
				panic(fmt.Sprintf("wire: %v", e)) // giving back what was just taken
			}
		}
		if n > 0 {
			if e := w.Write(Frame{Session: session, Type: TypeData, Stream: s, Payload: buf[:n]}); e != nil {
				return e
			}
		}
		if err != nil {
			if e := w.Write(Frame{Session: session, Type: TypeEOF, Stream: s}); e != nil {
				return e
			}
			if err == io.EOF {
				return nil
			}
			return err
		}
	}
}

// Receive writes an inbox's bytes to dst until the stream ends, and gives credit back. When dst refuses them it tells
// the sender so with an EOF frame, goes on consuming, and returns dst's error at the end of the stream. A link that
// fails does not end it: what has arrived is delivered.
func Receive(w *Writer, session uint32, s Stream, b *Inbox, dst io.Writer) error {
	var failed error
	var buf [MaxPayload]byte
	for {
		n, err := b.Read(buf[:])
		if err != nil {
			return failed
		}
		if failed == nil {
			if _, failed = dst.Write(buf[:n]); failed != nil {
				_ = w.Write(Frame{Session: session, Type: TypeEOF, Stream: s})
			}
		}
		if c := b.Consumed(n); c > 0 {
			_ = w.Write(Credit(session, s, c))
		}
	}
}
