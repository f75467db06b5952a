//go:build guest

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/vmm/session"
)

// binaryUnderTest is ./hvpost, or what HVPOST_BIN names.
func binaryUnderTest(t *testing.T) string {
	t.Helper()
	bin := os.Getenv("HVPOST_BIN")
	if bin == "" {
		bin = "hvpost"
	}
	abs, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	return abs
}

// A user is somebody at a terminal in which hvpost runs.
type user struct {
	t    *testing.T
	pty  *os.File // what the user types and sees
	tty  *os.File // the terminal itself, kept open to look at its mode
	cmd  *exec.Cmd
	mode unix.Termios // before
	done chan struct{}

	mu   sync.Mutex
	seen bytes.Buffer
	more chan struct{} // has an element when seen has grown
}

// sitDown runs hvpost in a terminal of 33 rows and 101 columns.
func sitDown(t *testing.T, args ...string) *user {
	t.Helper()
	master, tty, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close(); master.Close() })
	if err := pty.Setsize(tty, &pty.Winsize{Rows: 33, Cols: 101}); err != nil {
		t.Fatal(err)
	}
	u := &user{t: t, pty: master, tty: tty, done: make(chan struct{}), more: make(chan struct{}, 1)}
	u.mode = u.termios()
	u.cmd = exec.Command(binaryUnderTest(t), append([]string{"run"}, args...)...)
	u.cmd.Stdin, u.cmd.Stdout, u.cmd.Stderr = tty, tty, tty
	u.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		b := make([]byte, 4096)
		for {
			n, err := master.Read(b)
			u.mu.Lock()
			u.seen.Write(b[:n])
			u.mu.Unlock()
			select {
			case u.more <- struct{}{}:
			default:
			}
			if err != nil {
				return // the terminal was closed at the end of the test
			}
		}
	}()
	go func() { u.cmd.Wait(); close(u.done) }()
	t.Cleanup(func() {
		u.cmd.Process.Kill()
		<-u.done
	})
	return u
}

func (u *user) termios() unix.Termios {
	u.t.Helper()
	m, err := unix.IoctlGetTermios(int(u.tty.Fd()), unix.TCGETS)
	if err != nil {
		u.t.Fatal(err)
	}
	return *m
}

func (u *user) screen() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.seen.String()
}

// sees waits until the text has appeared behind the first from bytes of what
// was on the screen, and returns how much there is.
func (u *user) sees(from int, text string) int {
	u.t.Helper()
	limit := time.After(perRun)
	for {
		s := u.screen()
		if strings.Contains(s[from:], text) {
			return len(s)
		}
		select {
		case <-u.more:
		case <-u.done:
			u.t.Fatalf("ended without %q on the screen:\n%q", text, u.screen())
		case <-limit:
			u.t.Fatalf("no %q on the screen:\n%q", text, s)
		}
	}
}

func (u *user) types(s string) {
	u.t.Helper()
	if _, err := u.pty.WriteString(s); err != nil {
		u.t.Fatal(err)
	}
}

// isRaw checks that the test means anything: the mode did change.
func (u *user) isRaw() {
	u.t.Helper()
	if m := u.termios(); m.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
		u.t.Errorf("the terminal is not raw while the command runs: local flags %#x", m.Lflag)
	}
}

// leaves waits for the end and checks the exit code and the terminal's mode.
func (u *user) leaves(code int) {
	u.t.Helper()
	select {
	case <-u.done:
	case <-time.After(perRun):
		u.t.Fatalf("hvpost did not end; on the screen:\n%q", u.screen())
	}
	if got := u.cmd.ProcessState.ExitCode(); got != code {
		u.t.Errorf("exit code %d, want %d; on the screen:\n%q", got, code, u.screen())
	}
	if after := u.termios(); after != u.mode {
		u.t.Errorf("terminal left in another mode:\nbefore %+v\nafter  %+v", u.mode, after)
	}
}

// A shell at a terminal: it echoes, has the window's size and learns of
// changes, and its exit code comes out.
func TestGuest_TTY_Shell(t *testing.T) {
	for _, k := range kernels {
		t.Run(k, func(t *testing.T) {
			u := sitDown(t, "-k", k, "--", "sh")
			u.types("echo $((6*7))-ready\n")
			at := u.sees(0, "42-ready")
			u.isRaw()
			u.types("tty\n")
			at = u.sees(at, "/dev/")
			u.types("echo size=$(stty size)\n")
			at = u.sees(at, "size=33 101")
			if err := pty.Setsize(u.tty, &pty.Winsize{Rows: 51, Cols: 87}); err != nil {
				t.Fatal(err)
			}
			// The change travels beside the input: ask until it has arrived.
			for try := 0; ; try++ {
				u.types(fmt.Sprintf("echo try=%d size=$(stty size)=\n", try))
				at = u.sees(at, fmt.Sprintf("try=%d size=", try))
				at = u.sees(at-1, "=")
				if strings.Contains(u.screen(), "size=51 87=") {
					break
				}
				if try == 50 {
					t.Fatalf("the guest does not learn of the new size:\n%q", u.screen())
				}
				time.Sleep(100 * time.Millisecond)
			}
			u.types("exit 3\n")
			u.leaves(3)
		})
	}
}

// Ctrl-C is the guest's: it ends a command in there, not hvpost.
func TestGuest_TTY_InterruptIsTheGuests(t *testing.T) {
	u := sitDown(t, "--", "sh", "-c", "echo up; sleep 600")
	u.sees(0, "up")
	u.types("\x03")
	u.leaves(128 + int(syscall.SIGINT))
}

func TestGuest_TTY_CtrlAX_Leaves(t *testing.T) {
	u := sitDown(t, "--", "sh", "-c", "echo up; sleep 600")
	at := u.sees(0, "up")
	u.isRaw()
	u.types("\x01h")
	u.sees(at, "Ctrl-A x")
	u.types("\x01x")
	u.leaves(128 + int(syscall.SIGINT))
}

func TestGuest_TTY_Terminated_Restores(t *testing.T) {
	u := sitDown(t, "--", "sh", "-c", "echo up; sleep 600")
	u.sees(0, "up")
	u.isRaw()
	if err := u.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	u.leaves(128 + int(syscall.SIGTERM))
}

// A guest that dies takes the terminal's mode with it as little.
func TestGuest_TTY_Panic_Restores(t *testing.T) {
	u := sitDown(t, "--", "sh", "-c", "echo up; echo c > /proc/sysrq-trigger")
	u.sees(0, "up")
	u.leaves(codePanic)
}

// A processor that never exits by itself, on this machine's own KVM: the
// terminal belongs to the process that runs the machine.
func TestGuest_TTY_LocalKVM_Restores(t *testing.T) {
	spin := newPlace(t).file(t, "spin", elfKernel(elfX86, 4096, 0xEB, 0xFE))
	for name, end := range map[string]struct {
		do   func(*user)
		code int
	}{
		"left":         {func(u *user) { u.types("\x01x") }, 128 + int(syscall.SIGINT)},
		"terminated":   {func(u *user) { u.cmd.Process.Signal(syscall.SIGTERM) }, 128 + int(syscall.SIGTERM)},
		"hung up":      {func(u *user) { u.cmd.Process.Signal(syscall.SIGHUP) }, 128 + int(syscall.SIGHUP)},
		"boot timeout": {func(*user) {}, codeTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			limit := "1m"
			if end.code == codeTimeout {
				limit = "3s"
			}
			u := sitDown(t, "--host", "kvm", "-k", spin, "--boot-timeout", limit, "--", "sh")
			for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				if u.termios() != u.mode {
					break
				}
				select {
				case <-u.done:
					if u.cmd.ProcessState.ExitCode() == codeNoKVM {
						u.leaves(codeNoKVM)
						t.Skipf("this machine has no KVM of any kind: %s", u.screen())
					}
					t.Fatalf("ended: %q", u.screen())
				default:
				}
				if time.Now().After(deadline) {
					t.Fatalf("the terminal never became raw: %q", u.screen())
				}
			}
			u.isRaw()
			end.do(u)
			u.leaves(end.code)
		})
	}
}

// Results go through to streams from wherever the guest ran.
func TestGuest_ResultToStreams(t *testing.T) {
	for _, path := range []string{"/dev/stdout", "fifo"} {
		cmd := exec.Command(binaryUnderTest(t), "run", "--result", path, "--", "sh", "-c", "exit 5")
		var stdout bytes.Buffer
		got := make(chan []byte, 1)
		if path == "fifo" {
			path = filepath.Join(t.TempDir(), path)
			cmd.Args[3] = path
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
			go func() {
				b, _ := os.ReadFile(path)
				got <- b
			}()
		}
		cmd.Stdout = &stdout
		timer := time.AfterFunc(perRun, func() { cmd.Process.Kill() })
		cmd.Run()
		timer.Stop()
		b := stdout.Bytes()
		if path != "/dev/stdout" {
			select {
			case b = <-got:
			case <-time.After(10 * time.Second):
				t.Fatal("nothing came out of the FIFO")
			}
		}
		var res session.Result
		if err := json.Unmarshal(b, &res); err != nil || res.Reason != session.ReasonExit || res.ExitCode != 5 || cmd.ProcessState.ExitCode() != 5 {
			t.Errorf("%s: %q, code %d, %v", path, b, cmd.ProcessState.ExitCode(), err)
		}
	}
}

// Bad input with a terminal: the mode is never touched.
func TestGuest_TTY_BadInput_Restores(t *testing.T) {
	u := sitDown(t, "-k", "/nonexistent/kernel", "--", "sh")
	u.leaves(codeError)
	if s := u.screen(); strings.Count(s, "\n") > 1 {
		t.Errorf("more than one line: %q", s)
	}
}

// Without a terminal there is none in the guest either, unless asked for.
func TestGuest_TTY_None(t *testing.T) {
	u := sitDown(t, "-T", "--", "sh", "-c", "test -t 0 || echo none; echo up; sleep 600")
	u.sees(0, "up")
	if m := u.termios(); m != u.mode {
		t.Errorf("the terminal's mode was changed in spite of -T: %+v", m)
	}
	if s := u.screen(); !strings.Contains(s, "none") {
		t.Errorf("the command has a terminal: %q", s)
	}
	u.types("\x03") // cooked: the terminal makes it a signal for hvpost
	u.leaves(128 + int(syscall.SIGINT))
}
