package link

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"sync"
	"time"
)

const (
	// maxInfos bounds the INFO frames a host accepts: the agent sends one or
	// two, and each costs the host a JSON document.
	maxInfos = 8
	// maxPendingSignals bounds the signals that wait for the guest to read.
	maxPendingSignals = 64
	// byeTimeout bounds how long a result waits for the guest to take BYE. It
	// is a courtesy; the result is already here.
	byeTimeout = time.Second
	// stuckTimeout bounds how long a cancelled Run waits for a Read or Write
	// of the caller's Stdio that does not return.
	stuckTimeout = 250 * time.Millisecond
)

// ErrNoExit reports that the link ended before the agent told the command's
// result.
var ErrNoExit = errors.New("guest agent left without a result")

// Stdio is the host side of the command's standard streams. A nil In is an
// empty input; a nil Out or Err discards. A Write error on Out or Err closes
// that stream: the command sees a broken pipe.
//
// If In is an *os.File, Run ends a pending read when it returns. Another
// reader's Read cannot be ended and may outlive Run until it returns.
type Stdio struct {
	In       io.Reader
	Out, Err io.Writer
}

// HostConfig is what a Host is to do.
type HostConfig struct {
	Job   *Job // sent in answer to HELLO; nil when the image carries it
	Stdio Stdio

	// The callbacks run on the goroutine that reads the link: they must
	// return soon. Any may be nil. Strings in them are the guest's.
	Hello   func(Hello)
	Started func(boottimeNS uint64)
	Info    func(Info)
}

// A Host is the monitor's end of the frame protocol: one command's run.
type Host struct {
	conn  Conn
	cfg   HostConfig
	start []byte // START payload, or nil

	out [streams]*inflow // Stdout, Stderr
	in  *outflow

	// Reader's state.
	hello, started bool
	infos          int

	mu   sync.Mutex
	send sendQueue // protected by mu
	wake bell      // something to send

	stopIn  func() // ends the read of Stdio.In; set by Run before it starts
	startIn chan struct{}
}

// sendQueue is what waits to be sent, in the order in which kinds go out. All
// of it is bounded: what can be merged is merged.
type sendQueue struct {
	open     bool // the guest said HELLO; nothing is sent before
	start    bool
	credit   [streams]int
	signals  []int
	resize   uint64
	resized  bool
	shut     [streams]bool // EOF against the stream's direction
	data     []byte        // a whole DATA frame; nil: none
	eof      bool          // EOF of stdin
	bye      bool
	sentBye  bool
	accepted chan struct{} // closed when data was sent
}

// NewHost prepares a run over conn. Nothing moves before Run.
func NewHost(conn Conn, cfg HostConfig) (*Host, error) {
	h := &Host{conn: conn, cfg: cfg, in: newOutflow(), wake: newBell(), startIn: make(chan struct{})}
	for s := range h.out {
		h.out[s] = newInflow()
	}
	if cfg.Job != nil {
		p, err := json.Marshal(cfg.Job)
		if err != nil {
			return nil, fmt.Errorf("agent job: %w", err)
		}
		if len(p) > MaxPayload {
			return nil, fmt.Errorf("agent job: arguments and environment take %d bytes, the link carries %d: pass them in a file of the image", len(p), MaxPayload)
		}
		h.start = p
	}
	return h, nil
}

// Signal sends a signal to the command. Before the command runs it is kept for
// it. It does not block.
func (h *Host) Signal(signo int) error {
	if signo < 1 || signo > maxSignal {
		return fmt.Errorf("agent link: no signal %d", signo)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.send.signals) == maxPendingSignals {
		return fmt.Errorf("agent link: the guest takes no signals, %d are pending", maxPendingSignals)
	}
	h.send.signals = append(h.send.signals, signo)
	h.wake.ring()
	return nil
}

// Resize tells the command's terminal its size. The latest size wins. It does
// not block.
func (h *Host) Resize(rows, cols uint16) {
	h.queue(func(q *sendQueue) { q.resize, q.resized = uint64(rows)<<16|uint64(cols), true })
}

func (h *Host) queue(f func(*sendQueue)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f(&h.send)
	h.wake.ring()
}

// Run serves the link until the command ended and all its output was written,
// or the link broke, or ctx ended. It closes the Conn. Errors: ErrNoExit when
// the guest left early, ErrCorrupt when it broke the protocol, the context's.
func (h *Host) Run(ctx context.Context) (Exit, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var (
		exit    Exit
		readErr error
		read    = make(chan struct{})
		sent    = make(chan struct{})
		byed    = make(chan struct{})
		written sync.WaitGroup
		readIn  = make(chan struct{})
	)
	in := newInput(h.cfg.Stdio.In)
	defer in.release()
	h.stopIn = in.stop
	stdout, stderr := serialize(h.cfg.Stdio.Out, h.cfg.Stdio.Err)
	go func() {
		defer close(read)
		exit, readErr = h.read()
	}()
	go func() {
		defer close(sent)
		// The reader notices a dead Conn by itself and has the better error.
		h.sender(ctx, byed)
	}()
	written.Add(2)
	go func() { defer written.Done(); h.write(Stdout, stdout) }()
	go func() { defer written.Done(); h.write(Stderr, stderr) }()
	go func() {
		defer close(readIn)
		h.pumpIn(ctx, in)
	}()
	outDone := make(chan struct{})

	select {
	case <-read:
	case <-ctx.Done():
		h.conn.Close()
		<-read
	}
	// What the guest sent before its end is delivered in full, unless the
	// caller does not want to wait for it.
	for s := range h.out {
		h.out[s].close()
	}
	h.in.close()
	h.stopIn()
	go func() { written.Wait(); close(outDone) }()
	stuck := false
	select {
	case <-outDone:
	case <-ctx.Done():
		stuck = !waitFor(outDone, stuckTimeout)
	}
	if readErr == nil && ctx.Err() == nil {
		h.queue(func(q *sendQueue) { q.bye = true })
		t := time.NewTimer(byeTimeout)
		select {
		case <-byed:
		case <-sent:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
	done := ctx.Err()
	cancel(nil)
	h.conn.Close()
	<-sent
	if in.joinable {
		<-readIn
	}
	switch {
	case readErr == nil && !stuck:
		return exit, nil
	case done != nil:
		return Exit{}, done
	default:
		return Exit{}, readErr
	}
}

// waitFor reports whether c was closed within d.
func waitFor(c <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-c:
		return true
	case <-t.C:
		return false
	}
}

// read takes the guest's frames until the result, a violation or the end of
// the Conn. It never blocks on anything but the Conn.
func (h *Host) read() (Exit, error) {
	fr := frameReader{r: h.conn, peer: guestSide}
	for {
		f, p, err := fr.next()
		if err == io.EOF || err == io.ErrUnexpectedEOF || err == io.ErrClosedPipe {
			return Exit{}, ErrNoExit
		}
		if err != nil {
			return Exit{}, fmt.Errorf("agent link: %w", err)
		}
		exit, done, err := h.handle(f, p)
		if err != nil {
			return Exit{}, fmt.Errorf("agent link: %w", err)
		}
		if done {
			return exit, nil
		}
	}
}

// handle takes one well-formed frame and checks it against what came before.
func (h *Host) handle(f Header, p []byte) (exit Exit, done bool, err error) {
	if !h.hello && f.Type != TypeHello {
		return exit, false, corruptf("%v frame before HELLO", f.Type)
	}
	switch f.Type {
	case TypeHello:
		return exit, false, h.handleHello(f, p)
	case TypeStarted:
		if h.started {
			return exit, false, corruptf("STARTED twice")
		}
		h.started = true
		close(h.startIn)
		if h.cfg.Started != nil {
			h.cfg.Started(f.Arg)
		}
	case TypeData:
		credit, err := h.out[f.Stream].push(p)
		h.returnCredit(f.Stream, credit)
		return exit, false, err
	case TypeEOF:
		if f.Stream == Stdin {
			h.in.close()
			h.stopIn()
			return exit, false, nil
		}
		return exit, false, h.out[f.Stream].pushEOF()
	case TypeCredit:
		return exit, false, h.in.grant(f.Arg)
	case TypeInfo:
		if h.infos++; h.infos > maxInfos {
			return exit, false, corruptf("more than %d INFO frames", maxInfos)
		}
		var info Info
		if err := json.Unmarshal(p, &info); err != nil {
			return exit, false, corruptf("INFO payload: %v", err)
		}
		if h.cfg.Info != nil {
			h.cfg.Info(info)
		}
	case TypeExit:
		if !h.out[Stdout].ended() || !h.out[Stderr].ended() {
			return exit, false, corruptf("EXIT before the end of the output")
		}
		exit, err = parseExit(f.Arg, p)
		return exit, err == nil, err
	case TypeBye:
		return exit, false, ErrNoExit
	}
	return exit, false, nil
}

func (h *Host) handleHello(f Header, p []byte) error {
	if h.hello {
		return corruptf("HELLO twice")
	}
	if f.Arg != ProtocolVersion {
		return corruptf("agent speaks protocol version %d, this monitor %d: rebuild the image with this binary", f.Arg, ProtocolVersion)
	}
	var hello Hello
	if err := json.Unmarshal(p, &hello); err != nil {
		return corruptf("HELLO payload: %v", err)
	}
	h.hello = true
	if h.cfg.Hello != nil {
		h.cfg.Hello(hello)
	}
	h.queue(func(q *sendQueue) { q.open, q.start = true, h.start != nil })
	return nil
}

func (h *Host) returnCredit(s Stream, credit int) {
	if credit > 0 {
		h.queue(func(q *sendQueue) { q.credit[s] += credit })
	}
}

// write delivers one output stream to the caller, in order, until its end.
func (h *Host) write(s Stream, w io.Writer) {
	f := h.out[s]
	for {
		p, cost, err := f.take()
		if err != nil {
			return
		}
		if w != nil {
			_, err = w.Write(p)
		}
		h.returnCredit(s, f.done(p, cost))
		if err != nil {
			h.returnCredit(s, f.drop())
			h.queue(func(q *sendQueue) { q.shut[s] = true })
			return
		}
	}
}

// pumpIn sends the caller's input, no more than there is credit for, from the
// moment the command runs: a guest that does not get that far eats no input.
func (h *Host) pumpIn(ctx context.Context, in *input) {
	select {
	case <-h.startIn:
	case <-ctx.Done():
		return
	}
	buf := make([]byte, HeaderSize+MaxPayload)
	for {
		room, ok := h.in.wait()
		if !ok {
			return
		}
		n, err := in.Read(buf[HeaderSize : HeaderSize+room])
		if n > 0 {
			h.in.spend(n)
			Header{Type: TypeData, Stream: Stdin, Length: uint32(n)}.put(buf)
			accepted := make(chan struct{})
			h.queue(func(q *sendQueue) { q.data, q.accepted = buf[:HeaderSize+n], accepted })
			// The buffer is the sender's until it is done with it.
			select {
			case <-accepted:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			if !h.in.isShut() {
				h.queue(func(q *sendQueue) { q.eof = true })
			}
			return
		}
	}
}

// sender is the only writer of the Conn, so a guest that does not read stalls
// nothing but this goroutine. It closes byed when BYE is out.
func (h *Host) sender(ctx context.Context, byed chan struct{}) {
	var buf []byte
	for {
		buf = buf[:0]
		h.mu.Lock()
		q := &h.send
		var data []byte
		var accepted chan struct{}
		bye := false
		if q.open {
			buf = h.collect(buf)
			data, accepted = q.data, q.accepted
			q.data, q.accepted = nil, nil
			if q.eof && data == nil {
				buf = appendFrame(buf, Header{Type: TypeEOF, Stream: Stdin}, nil)
				q.eof = false
			}
			if q.bye && !q.sentBye && data == nil {
				buf = appendFrame(buf, Header{Type: TypeBye}, nil)
				q.sentBye, bye = true, true
			}
		}
		h.mu.Unlock()
		if len(buf) == 0 && data == nil {
			select {
			case <-h.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if len(buf) > 0 {
			if _, err := h.conn.Write(buf); err != nil {
				return
			}
		}
		if data != nil {
			if _, err := h.conn.Write(data); err != nil {
				return
			}
			close(accepted)
		}
		if bye {
			close(byed)
		}
	}
}

// collect appends the pending control frames. Preconditions: mu is held.
func (h *Host) collect(buf []byte) []byte {
	q := &h.send
	if q.start {
		buf = appendFrame(buf, Header{Type: TypeStart}, h.start)
		q.start = false
	}
	for s, n := range q.credit {
		// What waits here is part of the Credit that inflow counts, so it
		// always fits one grant.
		if n > 0 {
			buf = appendFrame(buf, Header{Type: TypeCredit, Stream: Stream(s), Arg: uint64(n)}, nil)
			q.credit[s] = 0
		}
	}
	for _, n := range q.signals {
		buf = appendFrame(buf, Header{Type: TypeSignal, Arg: uint64(n)}, nil)
	}
	q.signals = q.signals[:0]
	if q.resized {
		buf = appendFrame(buf, Header{Type: TypeResize, Arg: q.resize}, nil)
		q.resized = false
	}
	for s := range q.shut {
		if q.shut[s] {
			buf = appendFrame(buf, Header{Type: TypeEOF, Stream: Stream(s)}, nil)
			q.shut[s] = false
		}
	}
	return buf
}

// serialize returns out and err so that no two writes to one writer overlap,
// as os/exec does when both streams go to the same place.
func serialize(out, err io.Writer) (io.Writer, io.Writer) {
	if out == nil || err == nil || !sameWriter(out, err) {
		return out, err
	}
	w := &lockedWriter{w: out}
	return w, w
}

// sameWriter compares two writers, of which neither type need be comparable.
func sameWriter(a, b io.Writer) bool {
	ta, tb := reflect.TypeOf(a), reflect.TypeOf(b)
	return ta == tb && ta.Comparable() && reflect.ValueOf(a).Comparable() && a == b
}

type lockedWriter struct {
	mu sync.Mutex
	w  io.Writer // protected by mu
}

func (l *lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}
