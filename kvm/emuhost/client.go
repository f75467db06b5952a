package emuhost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/hvpost/hvpost/kvm/emuhost/wire"
)

// Cmd is a command to run in an emulated host, as the caller's user.
type Cmd struct {
	Argv []string // the first is looked up in Env's PATH inside
	Env  []string // nil: the caller's
	Dir  string   // "": the caller's

	// Nil streams are empty or dropped. When Stdout and Stderr are the same file, the command has it as one, so that
	// the order of what it writes is kept. A Stdin that is not an *os.File must return from Read by itself: Exec does
	// not wait for a Read that outlasts the command.
	Stdin          io.Reader
	Stdout, Stderr io.Writer

	// TTY gives the command a terminal for all three streams, of the size of Stdin's; its output goes to Stdout. If
	// Stdin is a terminal, it is in raw mode meanwhile.
	TTY bool

	// Signals are passed on to the command; SIGINT and SIGQUIT to its whole process group, as terminals do. Those
	// that are no syscall.Signal are ignored. May be nil.
	Signals <-chan os.Signal
}

// Exec runs a command in the emulated host whose daemon listens on socket, and returns its exit code: what it passed
// to exit(2), or 128 and the number of the signal that ended it. Then nothing the command started is left.
//
// An error means that it was not run to its end. The code is then 127 when there is no such command, 126 when it
// cannot be executed, and else 125. When the context ends, or this process does, the command is killed.
func Exec(ctx context.Context, socket string, cmd Cmd) (code int, err error) {
	q, err := request(cmd)
	if err != nil {
		return wire.CodeHost, err
	}
	conn, r, hello, err := connect(ctx, socket)
	if err != nil {
		return wire.CodeHost, err
	}
	defer conn.Close()
	if hello.Version != wire.Version {
		return wire.CodeHost, fmt.Errorf("emulated host %s was started by another version of this program (protocol %d, want %d); end it with: host down",
			hello.Name, hello.Version, wire.Version)
	}
	q.Env = append(q.Env, insideVar+"="+hello.Name)
	s := &client{cmd: cmd, w: wire.NewWriter(conn), stdin: wire.NewGate()}
	defer func() {
		if ctx.Err() != nil && err != nil {
			err = ctx.Err()
		}
	}()
	// Closing the connection kills the command, and ends the reads here.
	defer context.AfterFunc(ctx, func() { conn.Close() })()

	if q.TTY {
		restore, err := s.rawTerminal(q)
		if err != nil {
			return wire.CodeHost, err
		}
		defer restore()
	}
	for _, f := range wire.Parts(0, q.Encode()) {
		if err := s.w.Write(f); err != nil {
			return wire.CodeHost, fmt.Errorf("emulated host: %w", err)
		}
	}
	return s.run(r, q)
}

// client is one Exec.
type client struct {
	cmd   Cmd
	w     *wire.Writer
	stdin *wire.Gate
	out   [3]*wire.Inbox
}

// run carries the streams until the command's exit is known.
func (s *client) run(r *wire.Reader, q *wire.Request) (int, error) {
	done := make(chan struct{})
	var signals, outputs, input sync.WaitGroup
	for i, dst := range []io.Writer{wire.Stdout: s.cmd.Stdout, wire.Stderr: s.cmd.Stderr} {
		if i == int(wire.Stdin) {
			continue
		}
		if dst == nil {
			dst = io.Discard
		}
		b := wire.NewInbox()
		s.out[i] = b
		outputs.Go(func() {
			// A writer that fails has told the command, which may well end by it.
			_ = wire.Receive(s.w, 0, wire.Stream(i), b, dst)
		})
	}
	in, stop, err := interruptible(s.cmd.Stdin)
	if err != nil {
		s.endOutputs()
		outputs.Wait()
		return wire.CodeHost, err
	}
	input.Go(func() { _ = wire.Send(s.w, 0, wire.Stdin, s.stdin, in) })
	signals.Go(func() { s.signals(q, done) })

	exit, err := s.read(r)
	s.endOutputs()
	outputs.Wait()
	close(done)
	signals.Wait()
	s.stdin.Close()
	if stop() {
		input.Wait()
	}
	if err != nil {
		return wire.CodeHost, err
	}
	if exit.Error != "" {
		return exit.Code, errors.New(exit.Error)
	}
	return exit.Code, nil
}

func (s *client) endOutputs() {
	s.out[wire.Stdout].EOF()
	s.out[wire.Stderr].EOF()
}

// read handles the daemon's frames until the last.
func (s *client) read(r *wire.Reader) (wire.Exit, error) {
	for {
		f, err := r.Next()
		if err == io.EOF || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET) {
			return wire.Exit{}, errors.New("the emulated host ended while the command ran")
		}
		if err != nil {
			return wire.Exit{}, fmt.Errorf("emulated host: %w", err)
		}
		switch f.Type {
		case wire.TypeStarted:
		case wire.TypeData:
			b := s.out[f.Stream]
			if b == nil {
				return wire.Exit{}, fmt.Errorf("emulated host: data for stream %d", f.Stream)
			}
			err = b.Put(f.Payload)
		case wire.TypeEOF:
			if b := s.out[f.Stream]; b != nil {
				b.EOF()
			} else {
				s.stdin.Close() // the command reads no more
			}
		case wire.TypeCredit:
			var n uint32
			if n, err = f.Uint32(); err == nil && f.Stream == wire.Stdin {
				err = s.stdin.Give(n)
			}
		case wire.TypeExit:
			var e wire.Exit
			if err := f.Decode(&e); err != nil {
				return wire.Exit{}, fmt.Errorf("emulated host: %w", err)
			}
			return e, nil
		default:
			err = fmt.Errorf("unexpected %v", f.Type)
		}
		if err != nil {
			return wire.Exit{}, fmt.Errorf("emulated host: %w", err)
		}
	}
}

// signals passes on signals, and changes of the terminal's size, until done.
func (s *client) signals(q *wire.Request, done <-chan struct{}) {
	var resized chan os.Signal
	if f, ok := s.cmd.Stdin.(*os.File); ok && q.TTY && term.IsTerminal(int(f.Fd())) {
		resized = make(chan os.Signal, 1)
		signal.Notify(resized, unix.SIGWINCH)
		defer signal.Stop(resized)
	}
	from := s.cmd.Signals
	for {
		select {
		case sig, ok := <-from:
			if !ok {
				from = nil
				continue
			}
			if n, ok := sig.(unix.Signal); ok && n > 0 {
				_ = s.w.Write(wire.Signal(0, uint32(n))) // read meets the same end
			}
		case <-resized:
			if c, r, err := term.GetSize(int(s.cmd.Stdin.(*os.File).Fd())); err == nil {
				_ = s.w.Write(wire.Resize(0, uint16(r), uint16(c)))
			}
		case <-done:
			return
		}
	}
}

// rawTerminal learns the terminal's size and makes it raw.
func (s *client) rawTerminal(q *wire.Request) (restore func(), err error) {
	q.Rows, q.Cols = 24, 80
	f, ok := s.cmd.Stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return func() {}, nil
	}
	if c, r, err := term.GetSize(int(f.Fd())); err == nil {
		q.Rows, q.Cols = uint16(r), uint16(c)
	}
	old, err := term.MakeRaw(int(f.Fd()))
	if err != nil {
		return nil, fmt.Errorf("terminal: %w", err)
	}
	return func() { _ = term.Restore(int(f.Fd()), old) }, nil
}

// request makes the wire form of a command.
func request(cmd Cmd) (*wire.Request, error) {
	if len(cmd.Argv) == 0 {
		return nil, errors.New("emulated host: no command")
	}
	q := &wire.Request{Argv: cmd.Argv, Dir: cmd.Dir, TTY: cmd.TTY, Merge: sameFile(cmd.Stdout, cmd.Stderr)}
	env := cmd.Env
	if env == nil {
		env = os.Environ()
	}
	for _, e := range env {
		if !strings.HasPrefix(e, insideVar+"=") && !strings.HasPrefix(e, serveVar+"=") {
			q.Env = append(q.Env, e)
		}
	}
	for _, l := range [][]string{q.Argv, q.Env, {q.Dir}} {
		for _, s := range l {
			if strings.IndexByte(s, 0) >= 0 {
				return nil, fmt.Errorf("emulated host: zero byte in %q", s)
			}
		}
	}
	if !filepath.IsAbs(q.Dir) {
		wd, err := os.Getwd()
		if err != nil {
			return nil, fmt.Errorf("emulated host: working directory: %w", err)
		}
		q.Dir = filepath.Join(wd, q.Dir)
	}
	gs, err := os.Getgroups()
	if err != nil {
		return nil, fmt.Errorf("emulated host: groups: %w", err)
	}
	for _, g := range gs {
		q.Groups = append(q.Groups, uint32(g))
	}
	q.UID, q.GID = uint32(os.Geteuid()), uint32(os.Getegid())
	q.Umask = umask()
	if n := len(q.Encode()); n > wire.MaxRequest {
		return nil, fmt.Errorf("emulated host: arguments and environment of %d bytes, at most %d", n, wire.MaxRequest)
	}
	return q, nil
}

// umask reads the process's mask, without changing it as umask(2) must.
func umask() uint32 {
	const usual = 0o022
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return usual
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 9); err == nil {
				return uint32(n)
			}
		}
	}
	return usual
}

// sameFile reports whether two writers are one file, as after 2>&1.
func sameFile(a, b io.Writer) bool {
	fa, ok1 := a.(*os.File)
	fb, ok2 := b.(*os.File)
	if !ok1 || !ok2 || fa == nil || fb == nil {
		return false
	}
	sa, err1 := fa.Stat()
	sb, err2 := fb.Stat()
	return err1 == nil && err2 == nil && os.SameFile(sa, sb)
}

// interruptible wraps a command's input. stop ends reads of it and says whether they certainly end.
func interruptible(in io.Reader) (r io.Reader, stop func() bool, err error) {
	if in == nil {
		return strings.NewReader(""), func() bool { return true }, nil
	}
	f, ok := in.(*os.File)
	if !ok {
		return in, func() bool { return false }, nil
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("emulated host: %w", err)
	}
	var once sync.Once
	return &pollReader{f, pr}, func() bool {
		once.Do(func() { pw.Close() })
		return true
	}, nil
}

// pollReader reads a file until its wake end is readable, taking nothing from the file after that: what a command did
// not read stays for the caller.
type pollReader struct{ f, wake *os.File }

func (p *pollReader) Read(b []byte) (int, error) {
	for {
		fds := []unix.PollFd{{Fd: int32(p.f.Fd()), Events: unix.POLLIN}, {Fd: int32(p.wake.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(fds, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err
		}
		if fds[1].Revents != 0 {
			return 0, io.EOF
		}
		return p.f.Read(b)
	}
}

// connect greets a daemon.
func connect(ctx context.Context, socket string) (*net.UnixConn, *wire.Reader, wire.Hello, error) {
	var h wire.Hello
	conn, err := dial(ctx, socket)
	if err != nil {
		return nil, nil, h, fmt.Errorf("emulated host: %s: %w", socket, err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r := wire.NewReader(conn)
	err = wire.NewWriter(conn).Write(wire.JSON(0, wire.TypeHello, wire.Hello{Version: wire.Version}))
	var f wire.Frame
	if err == nil {
		f, err = r.Next()
	}
	if err == nil && f.Type != wire.TypeHello {
		err = fmt.Errorf("%v instead of hello", f.Type)
	}
	if err == nil {
		err = f.Decode(&h)
	}
	if err != nil {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		} else if err == io.EOF {
			err = ErrNotUp // it ended as we came
		}
		return nil, nil, h, fmt.Errorf("emulated host: %s: %w", socket, err)
	}
	return conn, r, h, nil
}
