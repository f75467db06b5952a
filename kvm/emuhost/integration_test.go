package emuhost

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests in this file boot real emulated hosts. They run when HVPOST_EMUHOST_TEST is 1, need QEMU, and a kernel:
// HVPOST_EMUHOST_KERNEL names it, HVPOST_EMUHOST_MODULES a directory with its modules.

// trial builds the program under test, once. It cannot be the test itself, which may be dynamically linked.
var trial = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "emuhost-trial-")
	if err != nil {
		return "", err
	}
	p := filepath.Join(dir, "trial")
	cmd := exec.Command("go", "build", "-o", p, "./internal/trial")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return p, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if p, err := trial0(); err == nil && p != "" {
		os.RemoveAll(filepath.Dir(p))
	}
	os.Exit(code)
}

var trialUsed bool

func trial0() (string, error) {
	if !trialUsed {
		return "", nil
	}
	return trial()
}

// rig is a run-time directory of its own and the program that works in it.
type rig struct {
	t    *testing.T
	prog string
	base string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	if os.Getenv("HVPOST_EMUHOST_TEST") != "1" {
		t.Skip("boots emulated hosts; set HVPOST_EMUHOST_TEST=1, HVPOST_EMUHOST_KERNEL and HVPOST_EMUHOST_MODULES to run it")
	}
	trialUsed = true
	p, err := trial()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, p, filepath.Join(t.TempDir(), "run")}
	t.Cleanup(func() {
		l, err := List(context.Background(), Config{RunDir: r.base})
		if err != nil {
			t.Error(err)
		}
		for _, st := range l {
			if err := Down(context.Background(), Config{RunDir: r.base, Name: st.Name}); err != nil {
				t.Error(err)
			}
		}
		if n := qemus(t, r.base); n != 0 {
			t.Errorf("%d QEMU processes are left", n)
		}
	})
	return r
}

// command makes a call of the trial program.
func (r *rig) command(args ...string) *exec.Cmd {
	return exec.Command(r.prog, append([]string{"-rundir", r.base}, args...)...)
}

// run runs the trial program and returns what it wrote, and its exit code.
func (r *rig) run(args ...string) (stdout, stderr string, code int) {
	r.t.Helper()
	var out, errs bytes.Buffer
	cmd := r.command(args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// want runs a command inside and wants its output and code.
func (r *rig) want(wantOut string, wantCode int, argv ...string) {
	r.t.Helper()
	out, errs, code := r.run(append([]string{"exec"}, argv...)...)
	if out != wantOut || code != wantCode {
		r.t.Errorf("%q: stdout %q, stderr %q, code %d; want %q and %d", argv, out, errs, code, wantOut, wantCode)
	}
}

func (r *rig) status() Status {
	r.t.Helper()
	out, errs, code := r.run("status")
	var st Status
	if err := json.Unmarshal([]byte(out), &st); err != nil || code != 0 {
		r.t.Fatalf("status: %v, code %d, %s", err, code, errs)
	}
	return st
}

// qemus counts the processes that mention the run-time directory in their arguments.
func qemus(t *testing.T, base string) int {
	t.Helper()
	ps, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range ps {
		text, err := os.ReadFile(p)
		if err == nil && strings.Contains(string(text), base) && strings.Contains(string(text), "mount_tag=xfer") {
			n++
		}
	}
	return n
}

// gone waits until a process has ended. A zombie has.
func gone(t *testing.T, pid int) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err == unix.ESRCH {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 20_000)
	if n != 1 {
		t.Fatalf("process %d lives on (%v)", pid, err)
	}
}

func TestEmulatedHost(t *testing.T) {
	r := newRig(t)
	if _, errs, code := r.run("up"); code != 0 || !strings.Contains(errs, "booted in") {
		t.Fatalf("up: code %d, %s", code, errs)
	}
	st := r.status()
	t.Logf("booted in %.1f s: QEMU %s, Linux %s", st.BootSeconds, st.QEMUVersion, st.Kernel)

	t.Run("kvm", func(t *testing.T) {
		out, errs, code := r.run("exec", r.prog, "kvm")
		if code != 0 || !strings.HasPrefix(out, "api 12\n") || !strings.HasSuffix(out, "ok\n") || !strings.Contains(out, "KVM_CAP_HYPERV 1\n") {
			t.Errorf("code %d, %s%s", code, out, errs)
		}
	})
	t.Run("codes", func(t *testing.T) {
		r.want("", 0, "true")
		r.want("", 255, "sh", "-c", "exit 255")
		r.want("", 137, "sh", "-c", "kill -9 $$")
		r.want("", 143, "sh", "-c", "kill -TERM $$")
		r.want("", 127, "no-such-command")
		r.want("", 127, "./no-such-command")
		r.want("", 126, "/etc/passwd")
	})
	t.Run("surroundings", func(t *testing.T) {
		dir := t.TempDir()
		out, errs, code := r.run("-C", dir, "exec", "sh", "-c", `pwd; id -u; umask; echo "$HVPOST_EMUHOST"; echo "$0"`, "zero\xff")
		if want := fmt.Sprintf("%s\n%d\n%04o\ntrial\nzero\xff\n", dir, os.Geteuid(), umask()); out != want || code != 0 {
			t.Errorf("got %q, %q, code %d, want %q", out, errs, code, want)
		}
		if _, errs, code := r.run("-C", "/no/such/dir", "exec", "true"); code != 126 || !strings.Contains(errs, "/no/such/dir") {
			t.Errorf("missing directory: code %d, %s", code, errs)
		}
	})
	t.Run("clock", func(t *testing.T) {
		out, errs, code := r.run("exec", "date", "+%s.%N")
		inside, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
		if err != nil || code != 0 {
			t.Fatalf("code %d, %v, %s", code, err, errs)
		}
		if d := float64(time.Now().UnixNano())/1e9 - inside; d < -1 || d > 15 { // a busy machine is slow to answer
			t.Errorf("the clock inside is %.1f s behind", d)
		}
	})
	t.Run("writes go nowhere", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "f")
		write(t, f, "old")
		r.want("new\n", 0, "sh", "-c", `echo new > "$0" && echo x > "$0.x" && cat "$0"`, f)
		if got := read(t, f); got != "old" {
			t.Errorf("the real file is %q", got)
		}
		if _, err := os.Stat(f + ".x"); !os.IsNotExist(err) {
			t.Errorf("a file has appeared: %v", err)
		}
		r.want("old", 0, "cat", f) // nor to the next command
		r.want("shared\n", 0, "sh", "-c", "echo shared > /run/x && cat /run/x")
		r.want("shared\n", 0, "cat", "/run/x")
	})
	t.Run("fresh files", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "f")
		write(t, f, "first")
		// A command that has the file open, and its directory, all the time.
		hold := r.command("exec", "sh", "-c", `cd "$(dirname "$0")"; exec 3< f; cat f; read x; exit 0`, f)
		in, err := hold.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := hold.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := hold.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("first"))); err != nil {
			t.Fatal(err)
		}
		write(t, f, "later") // in place, and of the same size within the same second
		r.want("later", 0, "cat", f)
		write(t, f+".new", "newer")
		if err := os.Rename(f+".new", f); err != nil {
			t.Fatal(err)
		}
		r.want("newer", 0, "cat", f)
		if err := os.Remove(f); err != nil {
			t.Fatal(err)
		}
		r.want("", 1, "sh", "-c", `test -e "$0"`, f)
		in.Close()
		if err := hold.Wait(); err != nil {
			t.Errorf("the command that held it: %v", err)
		}
	})
	t.Run("big", func(t *testing.T) {
		const size = 32 << 20
		cmd := r.command("exec", "cat")
		cmd.Stdin = io.LimitReader(rand.NewChaCha8([32]byte{1}), size)
		h := sha256.New()
		cmd.Stdout = h
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		want := sha256.New()
		if _, err := io.CopyN(want, rand.NewChaCha8([32]byte{1}), size); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(h.Sum(nil), want.Sum(nil)) {
			t.Error("what came back differs")
		}
	})
	t.Run("order of stdout and stderr", func(t *testing.T) {
		cmd := r.command("exec", "sh", "-c", "for i in 1 2 3 4 5 6 7 8 9; do echo o$i; echo e$i >&2; done")
		f, err := os.Create(filepath.Join(t.TempDir(), "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		cmd.Stdout, cmd.Stderr = f, f
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		var want strings.Builder
		for i := 1; i < 10; i++ {
			fmt.Fprintf(&want, "o%d\ne%d\n", i, i)
		}
		if got := read(t, f.Name()); got != want.String() {
			t.Errorf("got %q", got)
		}
	})
	t.Run("signals", func(t *testing.T) {
		for _, sig := range []syscall.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGUSR1, unix.SIGQUIT} {
			cmd := r.command("exec", "sh", "-c", fmt.Sprintf("trap 'exit 42' %d; echo ready; while :; do sleep 0.1; done", sig))
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
				t.Fatal(err)
			}
			if err := cmd.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			_, _ = io.Copy(io.Discard, out)
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 42 {
				t.Errorf("%v: code %d", sig, code)
			}
		}
	})
	// What runs inside under a name, in any command.
	count := func(t *testing.T, what string) string {
		t.Helper()
		out, errs, code := r.run("exec", "sh", "-c", `n=0; for p in /proc/[0-9]*; do case "$(tr '\0' ' ' < $p/cmdline 2>/dev/null)" in "sleep $0 "*) n=$((n+1));; esac; done; echo $n`, what)
		if code != 0 {
			t.Fatalf("code %d, %s", code, errs)
		}
		return strings.TrimSpace(out)
	}
	t.Run("killed client", func(t *testing.T) {
		cmd := r.command("exec", "sh", "-c", "setsid sleep 4711 & sleep 4711 & echo ready; wait")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
			t.Fatal(err)
		}
		if n := count(t, "4711"); n != "2" {
			t.Errorf("%s processes before", n)
		}
		cmd.Process.Kill()
		_ = cmd.Wait()
		// The daemon hears of it, then PID 1: the next question is behind both.
		for running := 2; running > 0; {
			running = r.status().Running
		}
		if n := count(t, "4711"); n != "0" {
			t.Errorf("%s processes live on", n)
		}
	})
	t.Run("nothing outlives its command", func(t *testing.T) {
		r.want("started\n", 3, "sh", "-c", "sleep 4712 & setsid sleep 4712 & echo started; exit 3")
		if n := count(t, "4712"); n != "0" {
			t.Errorf("%s processes live on", n)
		}
	})
	t.Run("closed stdout", func(t *testing.T) {
		cmd := r.command("exec", "yes")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 10)); err != nil {
			t.Fatal(err)
		}
		out.Close()
		_ = cmd.Wait() // by the signal here or the one inside
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range Views + 8 { // some have to wait
			wg.Go(func() {
				out, errs, code := r.run("exec", "sh", "-c", `sleep 0.2; echo "$0"`, strconv.Itoa(i))
				if out != strconv.Itoa(i)+"\n" || code != 0 {
					t.Errorf("%d: %q, %q, code %d", i, out, errs, code)
				}
			})
		}
		wg.Wait()
	})
	t.Run("outputs", func(t *testing.T) {
		h, err := Get(context.Background(), Config{RunDir: r.base, Name: "trial"})
		if err != nil {
			t.Fatal(err)
		}
		o := h.NewOutputs()
		dst := filepath.Join(t.TempDir(), "result")
		p, err := o.Map(dst)
		if err != nil {
			t.Fatal(err)
		}
		if code, err := h.Exec(context.Background(), Cmd{Argv: []string{"sh", "-c", `echo result > "$0"`, p}}); code != 0 || err != nil {
			t.Fatalf("code %d, %v", code, err)
		}
		if err := o.Finish(); err != nil {
			t.Fatal(err)
		}
		if got := read(t, dst); got != "result\n" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		out, errs, code := r.run("tty", "sh", "-c", "test -t 0 && test -t 1 && test -t 2 && tty && stty size && exit 7")
		if code != 7 || !strings.HasPrefix(out, "/dev/pts/") || !strings.HasSuffix(out, "\r\n24 80\r\n") {
			t.Errorf("%q, %q, code %d", out, errs, code)
		}
	})
	t.Run("go test -exec", func(t *testing.T) {
		profile := filepath.Join(t.TempDir(), "cover")
		cmd := exec.Command("go", "test", "-count=1", "-run", "Golden|RoundTrip", "-coverprofile", profile, "-exec", r.prog+" -rundir "+r.base+" exec", "./wire")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if got := read(t, profile); !strings.Contains(got, "wire/frame.go") {
			t.Errorf("no coverage: %q", got)
		}
	})
	t.Run("down", func(t *testing.T) {
		if _, errs, code := r.run("down"); code != 0 {
			t.Fatalf("code %d, %s", code, errs)
		}
		gone(t, st.PID)
		gone(t, st.QEMUPID)
		if es, err := os.ReadDir(r.base); err != nil || len(es) != 0 {
			t.Errorf("left: %v, %v", es, err)
		}
	})
}

// TestEmulatedHostDeaths kills what can be killed, and brings the host up again each time.
func TestEmulatedHostDeaths(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct {
		name string
		kill func(Status) error
	}{
		{"daemon", func(st Status) error { return unix.Kill(st.PID, unix.SIGKILL) }},
		{"daemon by SIGTERM", func(st Status) error { return unix.Kill(st.PID, unix.SIGTERM) }},
		{"QEMU", func(st Status) error { return unix.Kill(st.QEMUPID, unix.SIGKILL) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cmd := r.command("exec", "sh", "-c", "echo ready; sleep 1000")
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var errs bytes.Buffer
			cmd.Stderr = &errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
				t.Fatal(err)
			}
			st := r.status()
			if err := tc.kill(st); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != 125 || !strings.Contains(errs.String(), "emulated host") {
				t.Errorf("the command: code %d, %s", code, errs.String())
			}
			gone(t, st.PID)
			gone(t, st.QEMUPID)
			if _, errs, code := r.run("status"); code == 0 || !strings.Contains(errs, "not running") {
				t.Errorf("status: code %d, %s", code, errs)
			}
		})
	}
	r.want("again\n", 0, "echo", "again")
}

func TestEmulatedHostOnce(t *testing.T) {
	r := newRig(t)
	out, errs, code := r.run("once", "sh", "-c", "echo once; exit 9")
	if out != "once\n" || code != 9 {
		t.Errorf("%q, %q, code %d", out, errs, code)
	}
	if es, err := os.ReadDir(r.base); err != nil || len(es) != 0 {
		t.Errorf("left: %v, %v", es, err)
	}
	t.Run("killed", func(t *testing.T) {
		cmd := r.command("once", "sh", "-c", "echo ready; sleep 1000")
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, len("ready"))); err != nil {
			t.Fatal(err)
		}
		l, err := List(context.Background(), Config{RunDir: r.base})
		if err != nil || len(l) != 1 {
			t.Fatalf("%v, %v", l, err)
		}
		cmd.Process.Kill()
		_ = cmd.Wait()
		gone(t, l[0].PID)
		gone(t, l[0].QEMUPID)
		if es, err := os.ReadDir(r.base); err != nil || len(es) != 0 {
			t.Errorf("left: %v, %v", es, err)
		}
	})
}

// TestEmulatedHostBootErrors wants one line that says what happened and where to read more.
func TestEmulatedHostBootErrors(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct {
		name, want string
		args       []string
	}{
		{"no init", "Kernel panic", []string{"-append", "rdinit=/no/init init=/no/init"}},
		{"too little time", "did not boot within 100ms", []string{"-boot", "100ms"}},
		{"no kernel", "", []string{"-kernel", "/etc/passwd"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, errs, code := r.run(append(append([]string{}, tc.args...), "up")...)
			if code == 0 || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, tc.want) || !strings.Contains(errs, "log: "+r.base) {
				t.Errorf("code %d, %q", code, errs)
			}
			if n := qemus(t, r.base); n != 0 {
				t.Errorf("%d QEMU processes are left", n)
			}
		})
	}
}
