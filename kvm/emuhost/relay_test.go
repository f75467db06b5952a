package emuhost

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// fakeGuest is PID 1's end of the link with commands that are goroutines, so that client and daemon are tested without QEMU.
type fakeGuest struct {
	t    *testing.T
	w    *wire.Writer
	mu   sync.Mutex
	live map[uint32]*fakeSession
	wg   sync.WaitGroup

	killed chan uint32 // numbers of sessions that got a Kill while they lived
}

type fakeSession struct {
	req    []byte
	stdin  *wire.Inbox
	out    *wire.Gate
	err    *wire.Gate
	kill   chan struct{}
	once   sync.Once
	signal chan uint32
	hung   chan struct{} // closed when the client wants no more output
}

func (g *fakeGuest) serve(r *wire.Reader) {
	for {
		f, err := r.Next()
		if err != nil {
			return
		}
		g.mu.Lock()
		s := g.live[f.Session]
		if s == nil && f.Type == wire.TypeExec {
			s = &fakeSession{stdin: wire.NewInbox(), out: wire.NewGate(), err: wire.NewGate(), kill: make(chan struct{}), signal: make(chan uint32, 10), hung: make(chan struct{})}
			g.live[f.Session] = s
		}
		g.mu.Unlock()
		if s == nil {
			continue
		}
		switch f.Type {
		case wire.TypeExec:
			s.req = append(s.req, f.Payload...)
			if f.Stream == wire.LastPart {
				q, err := wire.DecodeRequest(s.req)
				if err != nil {
					g.t.Errorf("request: %v", err)
					return
				}
				g.wg.Go(func() { g.command(f.Session, s, q) })
			}
		case wire.TypeData:
			if err := s.stdin.Put(f.Payload); err != nil {
				g.t.Errorf("stdin: %v", err)
			}
		case wire.TypeEOF:
			if f.Stream == wire.Stdin {
				s.stdin.EOF()
			} else {
				close(s.hung)
			}
		case wire.TypeCredit:
			n, _ := f.Uint32()
			gate := s.out
			if f.Stream == wire.Stderr {
				gate = s.err
			}
			if err := gate.Give(n); err != nil {
				g.t.Errorf("credit: %v", err)
			}
		case wire.TypeSignal:
			n, _ := f.Uint32()
			s.signal <- n
		case wire.TypeKill:
			s.once.Do(func() {
				close(s.kill)
				g.killed <- f.Session
			})
			s.stdin.Abort()
			s.out.Close()
			s.err.Close()
		}
	}
}

func (g *fakeGuest) command(id uint32, s *fakeSession, q *wire.Request) {
	e := wire.Exit{}
	switch q.Argv[0] {
	case "exit":
		e.Code, _ = strconv.Atoi(q.Argv[1])
	case "cat":
		r, w := io.Pipe()
		go func() {
			_ = wire.Receive(g.w, id, wire.Stdin, s.stdin, w)
			w.Close()
		}()
		_ = wire.Send(g.w, id, wire.Stdout, s.out, r)
		r.Close()
	case "both":
		_ = wire.Send(g.w, id, wire.Stdout, s.out, strings.NewReader("to stdout"))
		_ = wire.Send(g.w, id, wire.Stderr, s.err, strings.NewReader("to stderr"))
	case "env":
		_ = wire.Send(g.w, id, wire.Stdout, s.out, strings.NewReader(q.Dir+"\n"+strings.Join(q.Env, "\n")))
	case "signal":
		select {
		case n := <-s.signal:
			e.Code = 128 + int(n)
		case <-s.kill:
		}
	case "yes":
		for n := 1; n > 0; {
			select {
			case <-s.hung:
				e.Code, n = 141, 0
			case <-s.kill:
				n = 0
			default:
				if n, _ = s.out.Take(10000); n > 0 {
					_ = g.w.Write(wire.Frame{Session: id, Type: wire.TypeData, Stream: wire.Stdout, Payload: make([]byte, n)})
				}
			}
		}
	case "wait":
		<-s.kill
	case "nosuch":
		e = wire.Exit{Code: wire.CodeNotFound, Error: "nosuch: command not found"}
	case "flood": // a PID 1 that minds no window
		for range 100 {
			_ = g.w.Write(wire.Frame{Session: id, Type: wire.TypeData, Stream: wire.Stdout, Payload: make([]byte, wire.MaxPayload)})
		}
		return
	}
	g.mu.Lock()
	delete(g.live, id)
	g.mu.Unlock()
	_ = g.w.Write(wire.JSON(id, wire.TypeExit, e))
}

// testDaemon is a daemon whose link leads to a fakeGuest.
type testDaemon struct {
	*daemon
	guest *fakeGuest
	end   func()
}

func startTestDaemon(t *testing.T) *testDaemon {
	t.Helper()
	base := t.TempDir()
	i := instance{base, "test"}
	if err := os.Mkdir(i.dir(), 0o700); err != nil {
		t.Fatal(err)
	}
	log, err := openLog(i.log())
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	d := &daemon{
		busy: make(chan struct{}, 1),
		cfg:  serveConfig{Base: base, Name: "test", IdleTimeout: -1}, inst: i, log: log,
		qemu:   &qemu{link: ours, done: make(chan struct{})},
		link:   wire.NewWriter(ours),
		stopCh: make(chan struct{}), sessions: map[uint32]*relay{}, conns: map[io.Closer]struct{}{},
	}
	g := &fakeGuest{t: t, w: wire.NewWriter(theirs), live: map[uint32]*fakeSession{}, killed: make(chan uint32, 1000)}
	var bg sync.WaitGroup
	bg.Go(func() { g.serve(wire.NewReader(theirs)) })
	bg.Go(func() { d.readLink(wire.NewReader(ours)) })
	l, err := listen(i.socket())
	if err != nil {
		t.Fatal(err)
	}
	bg.Go(func() { d.accept(l) })
	td := &testDaemon{daemon: d, guest: g}
	var once sync.Once
	td.end = func() {
		once.Do(func() {
			d.stop(nil)
			l.Close()
			d.mu.Lock()
			d.closing = true
			d.mu.Unlock()
			for _, r := range d.endSessions(nil) {
				<-r.done
			}
			d.mu.Lock()
			for c := range d.conns {
				c.Close()
			}
			d.mu.Unlock()
			d.clients.Wait()
			ours.Close()
			theirs.Close()
			bg.Wait()
			log.Close()
		})
	}
	t.Cleanup(td.end)
	return td
}

func (d *testDaemon) exec(ctx context.Context, cmd Cmd) (int, error) {
	return Exec(ctx, d.inst.socket(), cmd)
}

func TestExec(t *testing.T) {
	d := startTestDaemon(t)
	ctx := context.Background()
	t.Run("codes", func(t *testing.T) {
		for _, want := range []int{0, 1, 137, 255} {
			if code, err := d.exec(ctx, Cmd{Argv: []string{"exit", strconv.Itoa(want)}}); code != want || err != nil {
				t.Errorf("got %d, %v, want %d", code, err, want)
			}
		}
	})
	t.Run("streams", func(t *testing.T) {
		var out, err bytes.Buffer
		if code, e := d.exec(ctx, Cmd{Argv: []string{"both"}, Stdout: &out, Stderr: &err}); code != 0 || e != nil {
			t.Fatalf("got %d, %v", code, e)
		}
		if out.String() != "to stdout" || err.String() != "to stderr" {
			t.Errorf("stdout %q, stderr %q", out.String(), err.String())
		}
	})
	t.Run("big", func(t *testing.T) {
		in := bytes.Repeat([]byte("0123456789abcde\n"), 1<<17)
		var out bytes.Buffer
		if code, err := d.exec(ctx, Cmd{Argv: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out}); code != 0 || err != nil {
			t.Fatalf("got %d, %v", code, err)
		}
		if !bytes.Equal(in, out.Bytes()) {
			t.Errorf("%d bytes back of %d", out.Len(), len(in))
		}
	})
	t.Run("not found", func(t *testing.T) {
		code, err := d.exec(ctx, Cmd{Argv: []string{"nosuch"}})
		if code != 127 || err == nil || err.Error() != "nosuch: command not found" {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("environment", func(t *testing.T) {
		var out bytes.Buffer
		env := []string{"A=b", "BYTES=\xff\xfe", insideVar + "=other", serveVar + "=secret"}
		if code, err := d.exec(ctx, Cmd{Argv: []string{"env"}, Env: env, Dir: "/some/dir", Stdout: &out}); code != 0 || err != nil {
			t.Fatalf("got %d, %v", code, err)
		}
		if got, want := out.String(), "/some/dir\nA=b\nBYTES=\xff\xfe\n"+insideVar+"=test"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("signal", func(t *testing.T) {
		signals := make(chan os.Signal, 1)
		signals <- unix.SIGTERM
		if code, err := d.exec(ctx, Cmd{Argv: []string{"signal"}, Signals: signals}); code != 143 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("failing stdout", func(t *testing.T) {
		r, w := io.Pipe()
		r.Close()
		if code, err := d.exec(ctx, Cmd{Argv: []string{"yes"}, Stdout: w}); code != 141 || err != nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("no command", func(t *testing.T) {
		if code, err := d.exec(ctx, Cmd{}); code != wire.CodeHost || err == nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
	t.Run("zero byte", func(t *testing.T) {
		if code, err := d.exec(ctx, Cmd{Argv: []string{"a\x00b"}}); code != wire.CodeHost || err == nil {
			t.Errorf("got %d, %v", code, err)
		}
	})
}

// TestExecLeavesStdin checks that Exec takes nothing from a file after the command has ended, and waits for no more input.
func TestExecLeavesStdin(t *testing.T) {
	d := startTestDaemon(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if code, err := d.exec(context.Background(), Cmd{Argv: []string{"exit", "3"}, Stdin: r}); code != 3 || err != nil {
		t.Fatalf("got %d, %v", code, err)
	}
	if _, err := w.WriteString("x"); err != nil {
		t.Fatal(err)
	}
	var b [2]byte
	if n, err := r.Read(b[:]); n != 1 || err != nil || b[0] != 'x' {
		t.Errorf("Read = %d, %v, %q", n, err, b[:n])
	}
}

func TestExecContext(t *testing.T) {
	d := startTestDaemon(t)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := d.exec(ctx, Cmd{Argv: []string{"wait"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	<-d.guest.killed // the command knows
}

// TestClientVanishes closes connections without a word, at different times: every command must be killed.
func TestClientVanishes(t *testing.T) {
	d := startTestDaemon(t)
	for _, argv := range [][]string{{"wait"}, {"cat"}, {"yes"}} {
		conn, _, _, err := connect(context.Background(), d.inst.socket())
		if err != nil {
			t.Fatal(err)
		}
		w := wire.NewWriter(conn)
		for _, f := range wire.Parts(0, (&wire.Request{Argv: argv, Dir: "/"}).Encode()) {
			if err := w.Write(f); err != nil {
				t.Fatal(err)
			}
		}
		conn.Close()
		<-d.guest.killed
	}
	d.guest.wg.Wait()
}

func TestManyAtOnce(t *testing.T) {
	d := startTestDaemon(t)
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			in := bytes.Repeat([]byte{byte(i)}, 50000+i)
			var out bytes.Buffer
			code, err := d.exec(context.Background(), Cmd{Argv: []string{"cat"}, Stdin: bytes.NewReader(in), Stdout: &out})
			if code != 0 || err != nil || !bytes.Equal(in, out.Bytes()) {
				t.Errorf("%d: got %d, %v, %d bytes", i, code, err, out.Len())
			}
		})
	}
	wg.Wait()
	if st, err := status(context.Background(), d.inst); err != nil || st.Commands != 60 || st.Running != 0 {
		t.Errorf("status %+v, %v", st, err)
	}
}

// TestShutdownTellsClients checks that running commands get a reason when the host ends.
func TestShutdownTellsClients(t *testing.T) {
	d := startTestDaemon(t)
	type result struct {
		code int
		err  error
	}
	ch := make(chan result)
	out, w := io.Pipe()
	go func() {
		code, err := d.exec(context.Background(), Cmd{Argv: []string{"yes"}, Stdout: w})
		ch <- result{code, err}
	}()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	d.end()
	if r := <-ch; r.code != wire.CodeHost || r.err == nil || !strings.Contains(r.err.Error(), "shut down") {
		t.Errorf("got %d, %v", r.code, r.err)
	}
	if _, err := d.exec(context.Background(), Cmd{Argv: []string{"exit", "0"}}); !errors.Is(err, ErrNotUp) {
		t.Errorf("afterwards: %v, want %v", err, ErrNotUp)
	}
}

// TestFloodFromGuest checks that a PID 1 that ignores flow control ends the daemon, not its memory.
func TestFloodFromGuest(t *testing.T) {
	d := startTestDaemon(t)
	conn, _, _, err := connect(context.Background(), d.inst.socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() // without reading
	w := wire.NewWriter(conn)
	for _, f := range wire.Parts(0, (&wire.Request{Argv: []string{"flood"}, Dir: "/"}).Encode()) {
		if err := w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	<-d.stopCh
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.why == nil || !strings.Contains(d.why.Error(), "more than session") {
		t.Errorf("stopped because of %v", d.why)
	}
}

// TestBadClients sends what no client sends; the daemon must drop the connection and live.
func TestBadClients(t *testing.T) {
	d := startTestDaemon(t)
	hello := wire.JSON(0, wire.TypeHello, wire.Hello{Version: wire.Version})
	old := wire.JSON(0, wire.TypeHello, wire.Hello{Version: wire.Version + 1})
	exec := wire.Parts(0, (&wire.Request{Argv: []string{"wait"}, Dir: "/"}).Encode())[0]
	for _, tc := range []struct {
		name   string
		frames []wire.Frame
		raw    string
	}{
		{"garbage", nil, "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"},
		{"no hello", []wire.Frame{exec}, ""},
		{"hello of rubbish", []wire.Frame{{Type: wire.TypeHello, Payload: []byte("{")}}, ""},
		{"other version", []wire.Frame{old, exec}, ""},
		{"data first", []wire.Frame{hello, {Type: wire.TypeData}}, ""},
		{"shutdown in a session", []wire.Frame{hello, exec, {Type: wire.TypeShutdown}}, ""},
		{"garbage in a session", []wire.Frame{hello, exec}, strings.Repeat("\xff", 64)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			conn, err := net.Dial("unix", d.inst.socket())
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			w := wire.NewWriter(conn)
			// The daemon may hang up before it was told everything.
			for _, f := range tc.frames {
				if err := w.Write(f); err != nil && !errors.Is(err, unix.EPIPE) {
					t.Fatal(err)
				}
			}
			if _, err := conn.Write([]byte(tc.raw)); err != nil && !errors.Is(err, unix.EPIPE) {
				t.Fatal(err)
			}
			// The daemon's end of it is an end of file, or a reset when it had not read everything.
			if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("read: %v", err)
			}
		})
	}
	if code, err := d.exec(context.Background(), Cmd{Argv: []string{"exit", "4"}}); code != 4 || err != nil {
		t.Errorf("afterwards: %d, %v", code, err)
	}
}

// TestRegressLongSocketPath has a run-time directory whose socket does not fit into an address.
func TestRegressLongSocketPath(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 120))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(dir, "sock")
	l, err := listen(sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
	}()
	c, err := dial(context.Background(), sock)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
}

func TestIdle(t *testing.T) {
	d := startTestDaemon(t)
	d.cfg.IdleTimeout = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	out, w := io.Pipe()
	go func() {
		defer close(done)
		_, _ = d.exec(ctx, Cmd{Argv: []string{"yes"}, Stdout: w})
	}()
	if _, err := io.ReadFull(out, make([]byte, 1)); err != nil { // it runs
		t.Fatal(err)
	}
	go io.Copy(io.Discard, out)
	d.armIdle()
	select {
	case <-d.stopCh:
		t.Fatal("ended while a command ran")
	case <-time.After(3 * d.cfg.IdleTimeout):
	}
	cancel()
	<-done
	<-d.stopCh // the idle time after the last command
}
