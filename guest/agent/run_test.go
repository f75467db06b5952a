package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// result is what the host saw of one run.
type result struct {
	exit     link.Exit
	out, err string
	started  bool
}

// runJob runs job as the agent does, in this process, over a link in memory.
func runJob(t *testing.T, job link.Job, in io.Reader, opts ...func(*session)) result {
	t.Helper()
	return runWith(t, job, link.Stdio{In: in}, func(*link.Host) {}, opts...)
}

func runWith(t *testing.T, job link.Job, stdio link.Stdio, during func(*link.Host), opts ...func(*session)) result {
	t.Helper()
	hostConn, guestConn := net.Pipe()
	s := newSession(guestConn, nil)
	defer s.close()
	for _, o := range opts {
		o(s)
	}
	var r result
	var out, errs bytes.Buffer
	if stdio.Out == nil {
		stdio.Out = &out
	}
	if stdio.Err == nil {
		stdio.Err = &errs
	}
	started := make(chan struct{})
	h, err := link.NewHost(hostConn, link.HostConfig{Stdio: stdio, Started: func(uint64) { close(started) }})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		s.guest.Hello(link.Hello{})
		s.setJob(&job)
		s.guest.Exit(s.run(&job, func() {}))
	}()
	go func() {
		<-started
		during(h)
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r.exit, err = h.Run(ctx)
	if err != nil {
		t.Fatalf("%v (stdout %q, stderr %q)", err, out.String(), errs.String())
	}
	select {
	case <-started:
		r.started = true
	default:
		close(started)
	}
	r.out, r.err = out.String(), errs.String()
	return r
}

func sh(script string) link.Job { return link.Job{Argv: []string{"/bin/sh", "-c", script}} }

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	plain := write("plain", "x", 0o644)
	script := write("script", "exit $#", 0o755)
	badInterp := write("bad", "#!/no/such/interpreter\n", 0o755)
	binary := write("binary", "\x7fELF but not really\x00", 0o755)
	for _, tt := range []struct {
		name    string
		job     link.Job
		want    link.Exit
		stderr  string
		started bool
	}{
		{"0", sh("exit 0"), link.Exit{Reason: link.ReasonExit}, "", true},
		{"42", sh("exit 42"), link.Exit{Code: 42, Reason: link.ReasonExit}, "", true},
		{"255", sh("exit 255"), link.Exit{Code: 255, Reason: link.ReasonExit}, "", true},
		{"killed", sh("kill -9 $$"), link.Exit{Code: 137, Reason: link.ReasonSignal, Signal: 9}, "", true},
		{"terminated", sh("kill -15 $$"), link.Exit{Code: 143, Reason: link.ReasonSignal, Signal: 15}, "", true},
		{"by name", link.Job{Argv: []string{"sh", "-c", "exit 5"}}, link.Exit{Code: 5, Reason: link.ReasonExit}, "", true},
		{"own PATH", link.Job{Argv: []string{"script", "a", "b"}, Env: []string{"PATH=/nowhere:" + dir}}, link.Exit{Code: 2, Reason: link.ReasonExit}, "", true},
		{"script without #!", link.Job{Argv: []string{script, "a", "b", "c"}}, link.Exit{Code: 3, Reason: link.ReasonExit}, "", true},
		{"relative to cwd", link.Job{Argv: []string{"./script"}, Cwd: dir}, link.Exit{Reason: link.ReasonExit}, "", true},
		{"not found", link.Job{Argv: []string{"no-such-command"}}, link.Exit{Code: 127, Reason: link.ReasonNotFound}, "no-such-command: command not found", false},
		{"empty name", link.Job{Argv: []string{""}}, link.Exit{Code: 127, Reason: link.ReasonNotFound}, "not found", false},
		{"path not found", link.Job{Argv: []string{"/no/such"}}, link.Exit{Code: 127, Reason: link.ReasonNotFound}, "/no/such: no such file", false},
		{"not executable", link.Job{Argv: []string{plain}}, link.Exit{Code: 126, Reason: link.ReasonExecFailed}, "permission denied", false},
		{"not executable in PATH", link.Job{Argv: []string{"plain"}, Env: []string{"PATH=" + dir}}, link.Exit{Code: 126, Reason: link.ReasonExecFailed}, "permission denied", false},
		{"directory", link.Job{Argv: []string{dir}}, link.Exit{Code: 126, Reason: link.ReasonExecFailed}, "permission denied", false},
		{"bad interpreter", link.Job{Argv: []string{badInterp}}, link.Exit{Code: 127, Reason: link.ReasonNotFound}, "interpreter", false},
		{"bad cwd", link.Job{Argv: []string{"/bin/true"}, Cwd: "/no/dir"}, link.Exit{Code: 126, Reason: link.ReasonExecFailed}, "working directory /no/dir", false},
		{"garbage", link.Job{Argv: []string{binary}}, link.Exit{Reason: link.ReasonExit}, "not found", true}, // sh runs it, as execvp does
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := runJob(t, tt.job, nil)
			if tt.name == "garbage" {
				tt.want.Code = r.exit.Code // shells differ in the code, 2 or 127
				if r.exit.Code == 0 {
					t.Error("garbage succeeded")
				}
				tt.stderr = ""
			}
			if (r.exit.Error == "") != tt.started {
				t.Errorf("error text %q", r.exit.Error)
			}
			r.exit.Error = ""
			if r.exit != tt.want {
				t.Errorf("exit %+v, want %+v", r.exit, tt.want)
			}
			if !strings.Contains(r.err, tt.stderr) || tt.stderr == "" && tt.name != "garbage" && r.err != "" {
				t.Errorf("stderr %q, want %q", r.err, tt.stderr)
			}
			if r.started != tt.started {
				t.Errorf("started %v", r.started)
			}
		})
	}
}

func TestStreamsAndEnvironment(t *testing.T) {
	r := runJob(t, link.Job{
		Argv: []string{"/bin/sh", "-c", `echo out; echo err >&2; echo "$A|$B|$PATH|$HOME"; pwd; tr a-z A-Z; ps -o pid=,sid=,pgid= -p $$ 2>/dev/null | { read a b c; [ "$a" = "$b" ] && [ "$a" = "$c" ] && echo own session; }`},
		Env:  []string{"A=1", "B=x y=z", "A=2"}, Cwd: "/tmp",
	}, strings.NewReader("input"))
	want := "out\n2|x y=z|" + defaultPath + "|/root\n/tmp\nINPUT"
	if _, err := os.Stat("/bin/ps"); err == nil {
		want += "own session\n"
	}
	if r.out != want || r.err != "err\n" {
		t.Errorf("stdout %q, want %q; stderr %q", r.out, want, r.err)
	}
}

func TestUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("LOUD: not root, cannot become another user; run the tests as root")
	}
	r := runJob(t, link.Job{Argv: []string{"/bin/sh", "-c", "id -u; id -g; id -G; echo $HOME"}, UID: 1234, GID: 5678}, nil)
	if r.out != "1234\n5678\n5678\n/\n" {
		t.Errorf("%q %q", r.out, r.err)
	}
}

// TestBinaryBothWays sends 10 MiB through cat and compares.
func TestBinaryBothWays(t *testing.T) {
	data := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{7}).Read(data)
	r := runJob(t, link.Job{Argv: []string{"cat"}}, bytes.NewReader(data))
	if r.exit.Code != 0 || r.out != string(data) {
		t.Errorf("%+v, %d bytes came back, equal %v", r.exit, len(r.out), r.out == string(data))
	}
}

func TestInputEnds(t *testing.T) {
	if r := runJob(t, link.Job{Argv: []string{"wc", "-c"}}, nil); strings.TrimSpace(r.out) != "0" {
		t.Errorf("no input: %q", r.out)
	}
}

// TestEarlyExitWithPendingInput: a command that reads nothing of an endless
// input ends the run all the same.
func TestEarlyExitWithPendingInput(t *testing.T) {
	for _, script := range []string{"exit 3", "exec <&-; sleep 0.05; exit 3", "head -c 10 >/dev/null; exit 3"} {
		if r := runJob(t, sh(script), zeros{}); r.exit.Code != 3 {
			t.Errorf("%s: %+v", script, r.exit)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// TestOutputBeforeExit: all of a fast writer's output arrives although the
// command is long gone when it is read.
func TestOutputBeforeExit(t *testing.T) {
	slow := &slowWriter{}
	r := runWith(t, sh("head -c 400000 /dev/zero; head -c 1000 /dev/zero >&2"), link.Stdio{Out: slow}, func(*link.Host) {},
		func(s *session) { s.grace = time.Millisecond })
	if slow.n != 400000 || len(r.err) != 1000 {
		t.Errorf("%d bytes of stdout, %d of stderr", slow.n, len(r.err))
	}
}

type slowWriter struct{ n int }

func (s *slowWriter) Write(p []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	s.n += len(p)
	return len(p), nil
}

// TestOrphanHoldsStdout: a background process keeps the stream; the result
// comes nevertheless, with what was written before.
func TestOrphanHoldsStdout(t *testing.T) {
	for _, orphan := range []string{"sleep 20", "yes", "setsid sleep 20"} {
		t.Run(orphan, func(t *testing.T) {
			pidFile := filepath.Join(t.TempDir(), "pid")
			start := time.Now()
			r := runJob(t, sh(orphan+" & echo $! >"+pidFile+"; echo visible; exit 4"), nil, func(s *session) { s.grace = 50 * time.Millisecond })
			if d := time.Since(start); d > 10*time.Second {
				t.Errorf("took %v", d)
			}
			b, _ := os.ReadFile(pidFile)
			var pid int
			fmt.Sscan(string(b), &pid)
			if pid > 1 {
				unix.Kill(pid, unix.SIGKILL)
			}
			if r.exit.Code != 4 || !strings.Contains(r.out, "visible\n") {
				t.Errorf("%+v, %d bytes of output", r.exit, len(r.out))
			}
		})
	}
}

// TestLateFilter: a filter in the background that ends soon is waited for.
func TestLateFilter(t *testing.T) {
	r := runJob(t, sh("(sleep 0.1; echo late) & exit 0"), nil)
	if r.out != "late\n" {
		t.Errorf("%q", r.out)
	}
}

func TestSignals(t *testing.T) {
	for _, sig := range []unix.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL, unix.SIGUSR1} {
		// exec: a signal that meets dash between vfork and execve of a child
		// waits for the child's end.
		r := runWith(t, sh("exec sleep 20"), link.Stdio{}, func(h *link.Host) { h.Signal(int(sig)) })
		if r.exit.Signal != int(sig) || r.exit.Code != 128+int(sig) {
			t.Errorf("%v: %+v", sig, r.exit)
		}
	}
	r := runWith(t, sh("trap 'echo caught; exit 9' USR2; echo ready; while :; do sleep 0.02; done"), link.Stdio{},
		func(h *link.Host) { time.Sleep(100 * time.Millisecond); h.Signal(int(unix.SIGUSR2)) })
	if r.exit.Code != 9 || r.out != "ready\ncaught\n" {
		t.Errorf("%+v %q", r.exit, r.out)
	}
}

// TestSignalBeforeStart: what the user asked for while the guest booted
// happens.
func TestSignalBeforeStart(t *testing.T) {
	r := runJob(t, sh("exec sleep 20"), nil, func(s *session) { s.signal(unix.SIGTERM) })
	if r.exit.Signal != 15 {
		t.Errorf("%+v", r.exit)
	}
}

// TestBrokenPipeReachesTheCommand: "hvpost run -- yes | head" ends.
func TestBrokenPipeReachesTheCommand(t *testing.T) {
	n := 0
	r := runWith(t, link.Job{Argv: []string{"yes"}}, link.Stdio{Out: writerFunc(func(p []byte) (int, error) {
		if n += len(p); n > 1000 {
			return 0, errors.New("closed")
		}
		return len(p), nil
	})}, func(*link.Host) {})
	if r.exit.Signal != int(unix.SIGPIPE) {
		t.Errorf("%+v", r.exit)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestTTY(t *testing.T) {
	t.Run("is one", func(t *testing.T) {
		job := sh("tty >/dev/null && echo yes; echo err >&2; stty size; echo $TERM; ps -o tpgid= -p $$ >/dev/null && echo ctty </dev/tty")
		job.TTY, job.Rows, job.Cols = true, 33, 101
		r := runJob(t, job, nil)
		want := "yes\r\nerr\r\n33 101\r\nlinux\r\n"
		if !strings.HasPrefix(r.out, want) || r.err != "" || r.exit.Code != 0 {
			t.Errorf("%+v %q %q", r.exit, r.out, r.err)
		}
	})
	t.Run("resize", func(t *testing.T) {
		job := sh("trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done")
		job.TTY, job.Rows, job.Cols = true, 24, 80
		r := runWith(t, job, link.Stdio{}, func(h *link.Host) { time.Sleep(100 * time.Millisecond); h.Resize(50, 132) })
		if r.out != "ready\r\n50 132\r\n" {
			t.Errorf("%q", r.out)
		}
	})
	t.Run("input and its end", func(t *testing.T) {
		job := sh("stty -echo; cat; echo done")
		job.TTY = true
		r := runJob(t, job, strings.NewReader("line\nhalf"))
		if out := strings.ReplaceAll(r.out, "\r", ""); !strings.HasSuffix(out, "halfdone\n") || r.exit.Code != 0 {
			t.Errorf("%+v %q", r.exit, r.out)
		}
	})
	t.Run("control-c", func(t *testing.T) {
		job := sh("echo ready; exec sleep 20")
		job.TTY = true
		pr, pw := io.Pipe()
		r := runWith(t, job, link.Stdio{In: pr}, func(*link.Host) { time.Sleep(200 * time.Millisecond); pw.Write([]byte{3}); pw.Close() })
		if r.exit.Signal != 2 && r.exit.Code != 130 {
			t.Errorf("%+v %q", r.exit, r.out)
		}
	})
	t.Run("big output", func(t *testing.T) {
		job := sh("head -c 300000 /dev/zero | tr '\\0' x")
		job.TTY = true
		if r := runJob(t, job, nil); len(r.out) != 300000 {
			t.Errorf("%d bytes, %+v", len(r.out), r.exit)
		}
	})
	t.Run("orphan", func(t *testing.T) {
		job := sh("trap '' HUP; sleep 20 & echo visible; kill -9 $$")
		job.TTY = true
		r := runJob(t, job, nil, func(s *session) { s.grace = 50 * time.Millisecond })
		if r.out != "visible\r\n" || r.exit.Signal != 9 {
			t.Errorf("%+v %q", r.exit, r.out)
		}
	})
}

func TestDefaultIsAShell(t *testing.T) {
	if r := runJob(t, link.Job{}, strings.NewReader("echo $0; exit 6\n")); r.exit.Code != 6 || r.out != "sh\n" {
		t.Errorf("%+v %q", r.exit, r.out)
	}
}

// TestShutdownEndsCommand: asked to go down, the agent ends the command with
// SIGTERM, and says so in the result.
func TestShutdownEndsCommand(t *testing.T) {
	var s *session
	done := make(chan struct{})
	defer close(done)
	r := runWith(t, sh("trap 'echo bye; exit 0' TERM; while :; do sleep 0.02; done"), link.Stdio{},
		func(*link.Host) { time.Sleep(100 * time.Millisecond); s.askShutdown("poweroff", done) },
		func(x *session) { s = x })
	if r.exit.Code != 0 || r.exit.Shutdown != "poweroff" || r.out != "bye\n" {
		t.Errorf("%+v %q", r.exit, r.out)
	}
	// Too early: the command does not run at all.
	r = runJob(t, sh("echo no"), nil, func(s *session) { go s.askShutdown("reboot", done); <-s.shutdownAsked })
	if r.exit.Reason != link.ReasonAgent || r.exit.Shutdown != "reboot" || r.out != "" {
		t.Errorf("%+v %q", r.exit, r.out)
	}
}
