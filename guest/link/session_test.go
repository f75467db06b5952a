package link

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// runResult is what Host.Run returned.
type runResult struct {
	exit Exit
	err  error
}

// startHost runs a Host on its own goroutine.
func startHost(t testing.TB, ctx context.Context, c Conn, cfg HostConfig) (*Host, <-chan runResult) {
	t.Helper()
	h, err := NewHost(c, cfg)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan runResult, 1)
	go func() {
		e, err := h.Run(ctx)
		done <- runResult{e, err}
	}()
	return h, done
}

func await(t testing.TB, done <-chan runResult) runResult {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(20 * time.Second):
		buf := make([]byte, 1<<16)
		t.Fatalf("Run does not return:\n%s", buf[:runtime.Stack(buf, true)])
		panic("unreachable")
	}
}

// echoGuest is an agent whose command copies its input to stdout.
func echoGuest(t testing.TB, c Conn, h GuestHandlers) (*Guest, *sync.WaitGroup) {
	g := NewGuest(c, h)
	var wg sync.WaitGroup
	wg.Add(2)
	go func() { defer wg.Done(); g.Run() }()
	go func() {
		defer wg.Done()
		check := func(err error) {
			if err != nil {
				t.Error(err)
			}
		}
		check(g.Hello(Hello{Release: "6.12", VPs: 2}))
		check(g.Started(12345))
		pr, pw := io.Pipe()
		go func() {
			g.CopyInput(pw)
			pw.Close()
		}()
		check(g.PumpOutput(Stdout, pr))
		check(g.EndOutput(Stdout))
		check(g.EndOutput(Stderr))
		check(g.Exit(Exit{Code: 7, Reason: ReasonExit}))
	}()
	return g, &wg
}

func forEachTransport(t *testing.T, f func(t *testing.T, e *testEnds, size int)) {
	t.Run("window", func(t *testing.T) { f(t, windowEnds(t, WindowSize), 10<<20) })
	t.Run("small window", func(t *testing.T) { f(t, windowEnds(t, smallWindow), 3<<20) })
	t.Run("uart", func(t *testing.T) { f(t, uartEnds(t), 300<<10) })
}

func TestEcho(t *testing.T) {
	forEachTransport(t, func(t *testing.T, e *testEnds, size int) {
		data := make([]byte, size)
		r := rand.NewChaCha8([32]byte{1})
		r.Read(data)
		var out bytes.Buffer
		var hello Hello
		var started uint64
		bye := make(chan struct{})
		_, wg := echoGuest(t, e.guest, GuestHandlers{Bye: func() { close(bye) }})
		_, done := startHost(t, t.Context(), e.host, HostConfig{
			Stdio:   Stdio{In: bytes.NewReader(data), Out: &out},
			Hello:   func(h Hello) { hello = h },
			Started: func(ns uint64) { started = ns },
		})
		res := await(t, done)
		<-bye
		wg.Wait()
		if diff := cmp.Diff(Exit{Code: 7, Reason: ReasonExit}, res.exit); res.err != nil || diff != "" {
			t.Fatalf("%v\n%s", res.err, diff)
		}
		if hello.Release != "6.12" || started != 12345 {
			t.Errorf("hello %+v, started %d", hello, started)
		}
		if sha256.Sum256(out.Bytes()) != sha256.Sum256(data) {
			t.Errorf("%d bytes came back of %d, or they differ", out.Len(), size)
		}
	})
}

// TestStalledStdoutDoesNotStopStderr: the streams have credit of their own,
// and what is held for the stalled one stays within it.
func TestStalledStdoutDoesNotStopStderr(t *testing.T) {
	e := windowEnds(t, WindowSize)
	release := make(chan struct{})
	var once sync.Once
	var out bytes.Buffer
	stalled := writerFunc(func(p []byte) (int, error) {
		once.Do(func() { <-release })
		return out.Write(p)
	})
	errs := make(chan int, 1000)
	g := NewGuest(e.guest, GuestHandlers{})
	go g.Run()
	h, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{
		Out: stalled, Err: writerFunc(func(p []byte) (int, error) { errs <- len(p); return len(p), nil }),
	}})
	g.Hello(Hello{})
	const total = 2 << 20
	outDone := make(chan error, 1)
	go func() { outDone <- g.PumpOutput(Stdout, bytes.NewReader(make([]byte, total))) }()
	if err := g.PumpOutput(Stderr, bytes.NewReader(make([]byte, total))); err != nil {
		t.Fatal(err)
	}
	got := 0
	for got < total {
		got += <-errs
	}
	h.out[Stdout].mu.Lock()
	if held := len(h.out[Stdout].buf); held > Credit {
		t.Errorf("%d bytes held for a stalled reader, credit is %d", held, Credit)
	}
	h.out[Stdout].mu.Unlock()
	select {
	case <-outDone:
		t.Error("2 MiB went past a stalled reader")
	default:
	}
	close(release)
	if err := <-outDone; err != nil {
		t.Error(err)
	}
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Reason: ReasonExit})
	if r := await(t, done); r.err != nil || out.Len() != total {
		t.Errorf("%v, %d bytes of %d", r.err, out.Len(), total)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestRegressRow34_InputIsNotBufferedWithoutBound: a guest that never reads
// its input costs the host no more than the credit.
func TestRegressRow34_InputIsNotBufferedWithoutBound(t *testing.T) {
	e := windowEnds(t, WindowSize)
	g := NewGuest(e.guest, GuestHandlers{})
	go g.Run() // takes frames, but nobody calls CopyInput
	var read counter
	_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{In: &read}})
	g.Hello(Hello{})
	g.Started(1)
	for read.get() < Credit-3*MaxPayload {
		runtime.Gosched()
	}
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Reason: ReasonExit})
	if r := await(t, done); r.err != nil {
		t.Fatal(r.err)
	}
	if n := read.get(); n > Credit {
		t.Errorf("host read %d bytes of input for a guest that took none; credit is %d", n, Credit)
	}
}

// counter is an endless input that counts what was read.
type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n += len(p)
	return len(p), nil
}

func (c *counter) get() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}

// TestRegressRow35_StalledOutputDoesNotBlockTheMachine: whatever the caller's
// writers do, the calls that run on a VP return at once.
func TestRegressRow35_StalledOutputDoesNotBlockTheMachine(t *testing.T) {
	for _, mode := range []string{"window", "uart"} {
		t.Run(mode, func(t *testing.T) {
			e := windowEnds(t, WindowSize)
			if mode == "uart" {
				e = uartEnds(t)
			}
			block := make(chan struct{})
			ctx, cancel := context.WithCancel(t.Context())
			_, done := startHost(t, ctx, e.host, HostConfig{Stdio: Stdio{Out: writerFunc(func(p []byte) (int, error) { <-block; return len(p), nil })}})
			g := NewGuest(e.guest, GuestHandlers{})
			go g.Run()
			g.Hello(Hello{})
			go g.PumpOutput(Stdout, &counter{})
			time.Sleep(20 * time.Millisecond)
			start := time.Now()
			for range 100_000 {
				e.host.Kick(DoorbellWindow)
				e.host.ReceiveReady()
				if mode == "window" {
					e.host.Transmit('x')
				}
			}
			if d := time.Since(start); d > 5*time.Second {
				t.Errorf("100000 doorbells took %v", d)
			}
			cancel()
			if r := await(t, done); !errors.Is(r.err, context.Canceled) {
				t.Errorf("%v", r.err)
			}
			close(block)
		})
	}
}

// TestRegressRow49_CreditOverflow: credit that exceeds what the peer can owe,
// in one grant or by adding up, is a violation and changes nothing.
func TestRegressRow49_CreditOverflow(t *testing.T) {
	f := newOutflow()
	for _, n := range []uint64{0, 1, Credit, 1 << 32, 1<<64 - 1} {
		if err := f.grant(n); !errors.Is(err, ErrCorrupt) {
			t.Errorf("grant of %d to a full credit: %v", n, err)
		}
	}
	f.spend(100)
	if err := f.grant(100 + HeaderSize); err != nil {
		t.Error(err)
	}
	if err := f.grant(1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("grant beyond the credit: %v", err)
	}
	if f.credit != Credit {
		t.Errorf("credit %d, want %d", f.credit, Credit)
	}
}

func TestSignalResizeStart(t *testing.T) {
	e := windowEnds(t, WindowSize)
	type event struct {
		kind string
		a, b int
	}
	events := make(chan event, 10)
	var job Job
	g := NewGuest(e.guest, GuestHandlers{
		Start:  func(j Job) { job = j; events <- event{"start", 0, 0} },
		Signal: func(n int) { events <- event{"signal", n, 0} },
		Resize: func(r, c uint16) { events <- event{"resize", int(r), int(c)} },
	})
	go g.Run()
	want := Job{Argv: []string{"echo", "\x00binary\xffé"}, Env: []string{"A=b"}, TTY: true, Mounts: []Mount{{Target: "/m", Type: "tmpfs"}}}
	h, done := startHost(t, t.Context(), e.host, HostConfig{Job: &want})
	// Before HELLO they wait; then START comes first.
	h.Resize(24, 80)
	h.Resize(50, 132)
	if err := h.Signal(15); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, -1, 65} {
		if h.Signal(n) == nil {
			t.Errorf("signal %d accepted", n)
		}
	}
	g.Hello(Hello{})
	var got []event
	for range 3 {
		got = append(got, <-events)
	}
	if diff := cmp.Diff([]event{{"start", 0, 0}, {"signal", 15, 0}, {"resize", 50, 132}}, got, cmp.AllowUnexported(event{})); diff != "" {
		t.Error(diff)
	}
	// JSON has no invalid UTF-8; the replacement is the documented loss.
	want.Argv[1] = "\x00binary\ufffdé"
	if diff := cmp.Diff(want, job); diff != "" {
		t.Error(diff)
	}
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Code: 143, Reason: ReasonSignal, Signal: 15})
	if r := await(t, done); r.err != nil || r.exit.SignalName() != "SIGTERM" {
		t.Error(r)
	}
	for range maxPendingSignals {
		h.Signal(1)
	}
	if h.Signal(1) == nil {
		t.Error("signals pile up without bound")
	}
}

func TestJobTooLarge(t *testing.T) {
	if _, err := NewHost(nil, HostConfig{Job: &Job{Argv: []string{strings.Repeat("x", MaxPayload)}}}); err == nil {
		t.Error("accepted")
	}
}

// TestBlockedInputDoesNotBlockExit: the user's terminal says nothing, the
// guest ends, Run returns; and the file can be read by others afterwards.
func TestBlockedInputDoesNotBlockExit(t *testing.T) {
	for _, kind := range []string{"pollable pipe", "blocking pipe", "reader"} {
		t.Run(kind, func(t *testing.T) {
			pr, pw, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer pr.Close()
			defer pw.Close()
			var in io.Reader = pr
			switch kind {
			case "blocking pipe":
				pr.Fd() // switches the file to blocking mode
			case "reader":
				in = onlyReader{pr}
			}
			e := windowEnds(t, WindowSize)
			g := NewGuest(e.guest, GuestHandlers{})
			go g.Run()
			_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{In: in}})
			g.Hello(Hello{})
			g.Started(1)
			time.Sleep(10 * time.Millisecond) // the read is pending
			g.EndOutput(Stdout)
			g.EndOutput(Stderr)
			g.Exit(Exit{Reason: ReasonExit})
			if r := await(t, done); r.err != nil {
				t.Fatal(r.err)
			}
			if kind == "reader" {
				return
			}
			pw.Write([]byte("later"))
			b := make([]byte, 5)
			if _, err := io.ReadFull(pr, b); err != nil || string(b) != "later" {
				t.Errorf("input after Run: %q, %v", b, err)
			}
		})
	}
}

// TestNoInputBeforeStarted: a guest whose command never runs eats no input.
func TestNoInputBeforeStarted(t *testing.T) {
	e := windowEnds(t, WindowSize)
	g := NewGuest(e.guest, GuestHandlers{})
	go g.Run()
	in := strings.NewReader("precious")
	_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{In: in}})
	g.Hello(Hello{})
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Code: 127, Reason: ReasonNotFound, Error: "x: command not found"})
	if r := await(t, done); r.err != nil || r.exit.Code != 127 || in.Len() != 8 {
		t.Errorf("%+v, %d bytes of input left", r, in.Len())
	}
}

// TestBrokenPipe: when the caller's writer fails, the guest hears of it and
// may go on with the rest.
func TestBrokenPipe(t *testing.T) {
	e := windowEnds(t, WindowSize)
	closed := make(chan Stream, 2)
	g := NewGuest(e.guest, GuestHandlers{Closed: func(s Stream) { closed <- s }})
	go g.Run()
	n := 0
	_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{Out: writerFunc(func(p []byte) (int, error) {
		if n += len(p); n > 100_000 {
			return 0, errors.New("broken pipe")
		}
		return len(p), nil
	})}})
	g.Hello(Hello{})
	if err := g.PumpOutput(Stdout, &counter{}); err != io.ErrClosedPipe {
		t.Errorf("PumpOutput: %v", err)
	}
	if s := <-closed; s != Stdout {
		t.Errorf("closed %v", s)
	}
	if err := g.PumpOutput(Stderr, bytes.NewReader(make([]byte, 1<<20))); err != nil {
		t.Error(err)
	}
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Code: 141, Reason: ReasonSignal, Signal: 13})
	if r := await(t, done); r.err != nil {
		t.Error(r.err)
	}
}

// TestGuestClosesInput: the command stops reading; the host stops too, even if
// it is just waiting for the user.
func TestGuestClosesInput(t *testing.T) {
	e := windowEnds(t, WindowSize)
	g := NewGuest(e.guest, GuestHandlers{})
	go g.Run()
	pr, pw, _ := os.Pipe()
	defer pr.Close()
	defer pw.Close()
	_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{In: pr}})
	g.Hello(Hello{})
	g.Started(1)
	pw.Write([]byte("one"))
	got := make(chan string, 1)
	if err := g.CopyInput(writerFunc(func(p []byte) (int, error) { got <- string(p); return 0, errors.New("EPIPE") })); err != nil {
		t.Fatal(err)
	}
	if s := <-got; s != "one" {
		t.Errorf("input %q", s)
	}
	g.EndOutput(Stdout)
	g.EndOutput(Stderr)
	g.Exit(Exit{Reason: ReasonExit})
	if r := await(t, done); r.err != nil {
		t.Error(r.err)
	}
	pw.Write([]byte("two"))
	b := make([]byte, 3)
	if io.ReadFull(pr, b); string(b) != "two" {
		t.Errorf("the host ate the input: %q left", b)
	}
}

// TestSameWriter: both streams to one writer, as in 2>&1, must not race.
func TestSameWriter(t *testing.T) {
	e := windowEnds(t, WindowSize)
	g := NewGuest(e.guest, GuestHandlers{})
	go g.Run()
	var both bytes.Buffer
	_, done := startHost(t, t.Context(), e.host, HostConfig{Stdio: Stdio{Out: &both, Err: &both}})
	g.Hello(Hello{})
	var wg sync.WaitGroup
	wg.Add(2)
	for _, s := range []Stream{Stdout, Stderr} {
		go func() {
			defer wg.Done()
			g.PumpOutput(s, bytes.NewReader(make([]byte, 1<<20)))
			g.EndOutput(s)
		}()
	}
	wg.Wait()
	g.Exit(Exit{Reason: ReasonExit})
	if r := await(t, done); r.err != nil || both.Len() != 2<<20 {
		t.Errorf("%v, %d bytes", r.err, both.Len())
	}
}

func TestContextEndsRun(t *testing.T) {
	for _, hello := range []bool{false, true} {
		e := windowEnds(t, WindowSize)
		g := NewGuest(e.guest, GuestHandlers{})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		_, done := startHost(t, ctx, e.host, HostConfig{Stdio: Stdio{In: &counter{}}})
		if hello {
			g.Hello(Hello{})
			g.Started(0) // and then reads nothing: the host's sender is stuck in a full ring
		}
		if r := await(t, done); !errors.Is(r.err, context.DeadlineExceeded) {
			t.Errorf("hello %v: %v", hello, r.err)
		}
		cancel()
	}
}

// scriptConn is a peer that says fixed bytes and listens to nothing.
type scriptConn struct {
	io.Reader
	closed chan struct{}
	once   sync.Once
}

func newScript(p []byte) *scriptConn {
	return &scriptConn{Reader: bytes.NewReader(p), closed: make(chan struct{})}
}
func (s *scriptConn) Write(p []byte) (int, error) { return len(p), nil }
func (s *scriptConn) Close() error                { s.once.Do(func() { close(s.closed) }); return nil }

func script(frames ...[]byte) (p []byte) {
	for _, f := range frames {
		p = append(p, f...)
	}
	return p
}

func fr(t Type, s Stream, arg uint64, payload string) []byte {
	return appendFrame(nil, Header{Type: t, Stream: s, Arg: arg}, []byte(payload))
}

var (
	frHello = fr(TypeHello, 0, ProtocolVersion, "{}")
	frEOFs  = script(fr(TypeEOF, Stdout, 0, ""), fr(TypeEOF, Stderr, 0, ""))
	frExit  = fr(TypeExit, 0, 3, `{"reason":"exit"}`)
)

func TestHostileFrames(t *testing.T) {
	big := strings.Repeat("x", MaxPayload)
	fill := fr(TypeData, Stdout, 0, big)
	blocked := Stdio{Out: writerFunc(func(p []byte) (int, error) { return len(p), nil })}
	raw := func(f func(b []byte)) []byte { b := fr(TypeData, Stdout, 0, "x"); f(b); return b }
	for _, tt := range []struct {
		name  string
		bytes []byte
		want  error
		text  string
	}{
		{"good", script(frHello, fr(TypeStarted, 0, 1, ""), fr(TypeData, Stdout, 0, "out"), frEOFs, frExit), nil, ""},
		{"nothing", nil, ErrNoExit, ""},
		{"cut header", frHello[:9], ErrNoExit, ""},
		{"cut payload", script(frHello, fr(TypeData, Stdout, 0, "abc"))[:len(frHello)+18], ErrNoExit, ""},
		{"bye instead of exit", script(frHello, fr(TypeBye, 0, 0, "")), ErrNoExit, ""},
		{"no hello", fr(TypeData, Stdout, 0, "x"), ErrCorrupt, "before HELLO"},
		{"two hellos", script(frHello, frHello), ErrCorrupt, "twice"},
		{"version", fr(TypeHello, 0, 99, "{}"), ErrCorrupt, "rebuild"},
		{"hello text", fr(TypeHello, 0, ProtocolVersion, "{x"), ErrCorrupt, "payload"},
		{"type 0", script(frHello, raw(func(b []byte) { b[0] = 0 })), ErrCorrupt, "unknown"},
		{"type 12", script(frHello, raw(func(b []byte) { b[0] = 12 })), ErrCorrupt, "unknown"},
		{"type 255", script(frHello, raw(func(b []byte) { b[0] = 255 })), ErrCorrupt, "unknown"},
		{"host's type", script(frHello, fr(TypeStart, 0, 0, "{}")), ErrCorrupt, "direction"},
		{"reserved", script(frHello, raw(func(b []byte) { b[3] = 1 })), ErrCorrupt, "reserved"},
		{"stream 3", script(frHello, raw(func(b []byte) { b[1] = 3 })), ErrCorrupt, "stream 3"},
		{"stdin from guest", script(frHello, raw(func(b []byte) { b[1] = 0 })), ErrCorrupt, "direction"},
		{"stdout credit from guest", script(frHello, fr(TypeCredit, Stdout, 1, "")), ErrCorrupt, "direction"},
		{"stream where none belongs", script(frHello, fr(TypeStarted, Stdout, 1, "")), ErrCorrupt, "stdout"},
		{"empty data", script(frHello, raw(func(b []byte) { b[4] = 0 })), ErrCorrupt, "0 bytes"},
		{"length", script(frHello, raw(func(b []byte) { binary.LittleEndian.PutUint32(b[4:], MaxPayload+1) })), ErrCorrupt, "bytes"},
		{"huge length", script(frHello, raw(func(b []byte) { binary.LittleEndian.PutUint32(b[4:], 1<<32-1) })), ErrCorrupt, "bytes"},
		{"data argument", script(frHello, fr(TypeData, Stdout, 1, "x")), ErrCorrupt, "argument"},
		{"credit unasked", script(frHello, fr(TypeCredit, Stdin, 1, "")), ErrCorrupt, "CREDIT"},
		{"credit huge", script(frHello, fr(TypeCredit, Stdin, 1<<63, "")), ErrCorrupt, "argument"},
		{"started twice", script(frHello, fr(TypeStarted, 0, 1, ""), fr(TypeStarted, 0, 1, "")), ErrCorrupt, "twice"},
		{"data after eof", script(frHello, fr(TypeEOF, Stdout, 0, ""), fr(TypeData, Stdout, 0, "x")), ErrCorrupt, "after EOF"},
		{"eof twice", script(frHello, fr(TypeEOF, Stdout, 0, ""), fr(TypeEOF, Stdout, 0, "")), ErrCorrupt, "after EOF"},
		{"exit before eof", script(frHello, frExit), ErrCorrupt, "before the end"},
		{"exit code", script(frHello, frEOFs, fr(TypeExit, 0, 256, "{}")), ErrCorrupt, "argument"},
		{"exit text", script(frHello, frEOFs, fr(TypeExit, 0, 0, "[]")), ErrCorrupt, "payload"},
		{"exit reason", script(frHello, frEOFs, fr(TypeExit, 0, 0, `{"reason":"because"}`)), ErrCorrupt, "reason"},
		{"exit signal", script(frHello, frEOFs, fr(TypeExit, 0, 0, `{"reason":"signal","signal":65}`)), ErrCorrupt, "signal"},
		{"exit with stray signal", script(frHello, frEOFs, fr(TypeExit, 0, 0, `{"reason":"exit","signal":9}`)), ErrCorrupt, "signal"},
		{"info text", script(frHello, fr(TypeInfo, 0, 0, "{}}")), ErrCorrupt, "INFO"},
		{"info flood", script(frHello, bytes.Repeat(fr(TypeInfo, 0, 0, "{}"), maxInfos+1)), ErrCorrupt, "INFO"},
		{"more than credit at once", script(frHello, bytes.Repeat(fill, 4)), ErrCorrupt, "beyond the credit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			stdio := blocked
			if tt.name == "more than credit at once" {
				gate := make(chan struct{})
				t.Cleanup(func() { close(gate) })
				stdio = Stdio{Out: writerFunc(func(p []byte) (int, error) { <-gate; return len(p), nil })}
				// Run waits for the stuck writer; the test is about the reader.
				h, err := NewHost(newScript(tt.bytes), HostConfig{Stdio: stdio})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := h.read(); !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
					t.Errorf("got %v", err)
				}
				return
			}
			_, done := startHost(t, t.Context(), newScript(tt.bytes), HostConfig{Stdio: stdio})
			r := await(t, done)
			if !errors.Is(r.err, tt.want) || r.err != nil && !strings.Contains(r.err.Error(), tt.text) {
				t.Errorf("got %v, want %v with %q", r.err, tt.want, tt.text)
			}
			if tt.want == nil && r.exit.Code != 3 {
				t.Errorf("exit %+v", r.exit)
			}
		})
	}
}

// TestOutputBeforeCorruptionIsDelivered: what came before the violation is
// evidence and must not be lost.
func TestOutputBeforeCorruptionIsDelivered(t *testing.T) {
	var out bytes.Buffer
	_, done := startHost(t, t.Context(), newScript(script(frHello, fr(TypeData, Stdout, 0, "last words"), frHello)), HostConfig{Stdio: Stdio{Out: &out}})
	if r := await(t, done); !errors.Is(r.err, ErrCorrupt) || out.String() != "last words" {
		t.Errorf("%v, output %q", r.err, out.String())
	}
}

func FuzzFrame(f *testing.F) {
	f.Add(script(frHello, fr(TypeStarted, 0, 1, ""), fr(TypeData, Stdout, 0, "out"), fr(TypeData, Stderr, 0, "err"), frEOFs, frExit))
	f.Add(script(frHello, fr(TypeInfo, 0, 0, `{"devices":[{"instance":"a","class":"b"}]}`), fr(TypeCredit, Stdin, 5, "")))
	f.Add(script(frHello, fr(TypeEOF, Stdin, 0, ""), fr(TypeBye, 0, 0, "")))
	f.Add(frHello[:20])
	f.Add(bytes.Repeat([]byte{255}, 100))
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, peer := range []side{host, guestSide} {
			r := frameReader{r: bytes.NewReader(p), peer: peer}
			for {
				h, payload, err := r.next()
				if err != nil {
					break
				}
				// What was accepted encodes to the same bytes.
				b := appendFrame(nil, h, payload)
				if again, err := parseHeader((*[HeaderSize]byte)(b), peer); err != nil || again != h {
					t.Fatalf("%+v came back as %+v, %v", h, again, err)
				}
			}
			if len(r.buf) > MaxPayload {
				t.Fatalf("buffer of %d bytes", len(r.buf))
			}
		}
		h, err := NewHost(newScript(p), HostConfig{Stdio: Stdio{In: strings.NewReader("in"), Out: io.Discard}})
		if err != nil {
			t.Fatal(err)
		}
		exit, err := h.Run(context.Background())
		if err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNoExit) {
			t.Fatalf("%v", err)
		}
		if err == nil && (exit.Code < 0 || exit.Code > 255 || exit.Reason == "") {
			t.Fatalf("exit %+v", exit)
		}
		g := NewGuest(newScript(p), GuestHandlers{Start: func(Job) {}, Signal: func(int) {}, Resize: func(_, _ uint16) {}})
		g.Run()
	})
}

func BenchmarkEcho(b *testing.B) {
	e := windowEnds(b, WindowSize)
	b.SetBytes(1)
	_, wg := echoGuest(b, e.guest, GuestHandlers{})
	var n writerFunc = func(p []byte) (int, error) { return len(p), nil }
	_, done := startHost(b, b.Context(), e.host, HostConfig{Stdio: Stdio{In: io.LimitReader(&counter{}, int64(b.N)), Out: n}})
	await(b, done)
	wg.Wait()
	b.ReportMetric(float64(e.doorbell)/float64(b.N)*1e6, "doorbells/MB")
	b.ReportMetric(float64(e.uart.rings)/float64(b.N)*1e6, "rings/MB")
}
