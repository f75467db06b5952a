package inside

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// exits collects the Exit frames of a server that has no view to give, so that no command gets to run.
type exits struct {
	in   io.WriteCloser
	w    *wire.Writer
	got  chan wire.Frame
	done chan error
}

func startServer(t *testing.T) *exits {
	t.Helper()
	inR, inW := io.Pipe()
	outR, outW := io.Pipe()
	s := &server{w: wire.NewWriter(outW), xfer: "/xfer", views: make(chan int), sessions: map[uint32]*session{}}
	e := &exits{in: inW, w: wire.NewWriter(inW), got: make(chan wire.Frame, 10), done: make(chan error, 1)}
	go func() {
		e.done <- s.serve(wire.NewReader(inR))
		outW.Close()
	}()
	go func() {
		defer close(e.got)
		r := wire.NewReader(outR)
		for {
			f, err := r.Next()
			if err != nil {
				return
			}
			f.Payload = bytes.Clone(f.Payload)
			e.got <- f
		}
	}()
	t.Cleanup(func() {
		inW.Close()
		if err := <-e.done; err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("serve: %v", err)
		}
		for f := range e.got {
			t.Errorf("more from the server: %v %s", f.Type, f.Payload)
		}
	})
	return e
}

func (e *exits) send(t *testing.T, fs ...wire.Frame) {
	t.Helper()
	for _, f := range fs {
		if err := e.w.Write(f); err != nil {
			t.Fatal(err)
		}
	}
}

func (e *exits) next(t *testing.T, session uint32) wire.Exit {
	t.Helper()
	f := <-e.got
	var x wire.Exit
	if f.Type != wire.TypeExit || f.Session != session {
		t.Fatalf("got %v of session %d", f.Type, f.Session)
	}
	if err := f.Decode(&x); err != nil {
		t.Fatal(err)
	}
	return x
}

func execFrames(id uint32) []wire.Frame {
	return wire.Parts(id, (&wire.Request{Argv: []string{"true"}, Dir: "/"}).Encode())
}

// TestSessionEnds sends what ends a session that waits for its turn, and looks at what it is told.
func TestSessionEnds(t *testing.T) {
	const id = 5
	data := func(n int) wire.Frame {
		return wire.Frame{Session: id, Type: wire.TypeData, Payload: make([]byte, n)}
	}
	window := make([]wire.Frame, wire.Window/wire.MaxPayload+1)
	for i := range window {
		window[i] = data(wire.MaxPayload)
	}
	huge := make([]wire.Frame, wire.MaxRequest/wire.MaxPayload+1)
	for i := range huge {
		huge[i] = wire.Frame{Session: id, Type: wire.TypeExec, Stream: wire.MoreFollows, Payload: make([]byte, wire.MaxPayload)}
	}
	for _, tc := range []struct {
		name   string
		first  []wire.Frame
		frames []wire.Frame
		want   string
	}{
		{"kill", execFrames(id), []wire.Frame{{Session: id, Type: wire.TypeKill}}, "interrupted"},
		{"SIGTERM", execFrames(id), []wire.Frame{wire.Signal(id, uint32(unix.SIGTERM))}, "interrupted"},
		{"stdin beyond the window", execFrames(id), window, wire.ErrWindow.Error()},
		{"credit never owed", execFrames(id), []wire.Frame{wire.Credit(id, wire.Stdout, 1)}, wire.ErrWindow.Error()},
		{"second command", execFrames(id), execFrames(id), "second command"},
		{"data for stdout", execFrames(id), []wire.Frame{{Session: id, Type: wire.TypeData, Stream: wire.Stdout}}, "data for stream 1"},
		{"credit of three bytes", execFrames(id), []wire.Frame{{Session: id, Type: wire.TypeCredit, Stream: wire.Stdout, Payload: make([]byte, 3)}}, "malformed"},
		{"unexpected", execFrames(id), []wire.Frame{{Session: id, Type: wire.TypeStarted}}, "unexpected started"},
		{"rubbish", []wire.Frame{{Session: id, Type: wire.TypeExec, Payload: []byte{0xff}}}, nil, "malformed request"},
		{"no end of request", huge, nil, "exceed"},
		{"kill before the command", []wire.Frame{{Session: id, Type: wire.TypeExec, Stream: wire.MoreFollows}}, []wire.Frame{{Session: id, Type: wire.TypeKill}}, "given up"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			e := startServer(t)
			e.send(t, tc.first...)
			e.send(t, tc.frames...)
			if x := e.next(t, id); x.Code != wire.CodeHost || !strings.Contains(x.Error, tc.want) {
				t.Errorf("got %d, %q, want %q", x.Code, x.Error, tc.want)
			}
			// The number is free again, and frames for the dead are no trouble.
			e.send(t, data(1), wire.Frame{Session: id, Type: wire.TypeKill})
		})
	}
}

// TestHarmlessSignal checks that only signals that end a process end its wait for a view.
func TestHarmlessSignal(t *testing.T) {
	e := startServer(t)
	e.send(t, execFrames(1)...)
	e.send(t, wire.Signal(1, uint32(unix.SIGWINCH)), wire.Signal(1, 0), wire.Signal(1, 1<<31), wire.Resize(1, 1, 1))
	e.send(t, execFrames(2)...)
	e.send(t, wire.Frame{Session: 2, Type: wire.TypeKill})
	e.next(t, 2) // not session 1
	e.send(t, wire.Frame{Session: 1, Type: wire.TypeKill})
	e.next(t, 1)
}

func TestTooManySessions(t *testing.T) {
	e := startServer(t)
	for id := range uint32(maxSessions) {
		e.send(t, execFrames(id+1)...)
	}
	const more = maxSessions + 1
	e.send(t, execFrames(more)...)
	if x := e.next(t, more); !strings.Contains(x.Error, "commands at once") {
		t.Errorf("got %q", x.Error)
	}
	for id := range uint32(maxSessions) {
		e.send(t, wire.Frame{Session: id + 1, Type: wire.TypeKill})
		e.next(t, id+1)
	}
}

func TestShutdownEndsServe(t *testing.T) {
	e := startServer(t)
	e.send(t, wire.Frame{Type: wire.TypeShutdown})
	if err := <-e.done; err != nil {
		t.Errorf("serve: %v", err)
	}
	e.done <- nil // for the cleanup
}

func TestPopulated(t *testing.T) {
	for in, want := range map[string]bool{"populated 1\nfrozen 0\n": true, "populated 0\nfrozen 1\n": false, "": false, "frozen 0\npopulated 1": true} {
		if got := populated(in); got != want {
			t.Errorf("%q: %v", in, got)
		}
	}
}

func TestIsRoleOutside(t *testing.T) {
	if IsRole() {
		t.Error("a test is PID 1 of an emulated host")
	}
}

// FuzzServer feeds frames to a server: whatever they are, it must not panic, and it must end with its input. No view is
// free, so no command runs.
func FuzzServer(f *testing.F) {
	frame := func(fs ...wire.Frame) []byte {
		var b bytes.Buffer
		w := wire.NewWriter(&b)
		for _, f := range fs {
			if err := w.Write(f); err != nil {
				panic(err)
			}
		}
		return b.Bytes()
	}
	exec := execFrames(1)[0]
	f.Add(frame(exec, wire.Frame{Session: 1, Type: wire.TypeKill}))
	f.Add(frame(exec, wire.Credit(1, wire.Stdout, 5), wire.Frame{Session: 1, Type: wire.TypeData, Payload: []byte("in")}))
	f.Add(frame(wire.Frame{Session: 2, Type: wire.TypeExec, Stream: wire.MoreFollows}, wire.Signal(2, 9)))
	f.Add(frame(exec, exec, wire.Frame{Type: wire.TypeShutdown}))
	f.Add(binary.LittleEndian.AppendUint32(nil, 1<<31))
	f.Fuzz(func(t *testing.T, in []byte) {
		s := &server{w: wire.NewWriter(io.Discard), views: make(chan int), sessions: map[uint32]*session{}}
		err := s.serve(wire.NewReader(bytes.NewReader(in)))
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, wire.ErrFrame) {
			t.Errorf("serve: %v", err)
		}
		s.mu.Lock()
		var live []*session
		for _, c := range s.sessions {
			live = append(live, c)
		}
		s.mu.Unlock()
		for _, c := range live {
			c.kill() // ends its goroutine
		}
	})
}
