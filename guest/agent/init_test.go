package agent

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/guest/link"
)

// initEnv makes the test binary play process 1 of a namespace.
const initEnv = "HVPOST_AGENT_TEST_INIT"

func TestMain(m *testing.M) {
	if job := os.Getenv(initEnv); job != "" {
		playInit(job)
	}
	os.Exit(m.Run())
}

// playInit is the agent as process 1 of a PID namespace, in which reboot(2)
// ends the namespace and not the machine.
func playInit(job string) {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "not process 1: refusing to play init")
		os.Exit(99)
	}
	a := &agent{
		jobPath: job,
		openLink: func(string) (*link.GuestPort, error) {
			c, err := net.FileConn(os.NewFile(3, "link"))
			return &link.GuestPort{Conn: c, Transport: "test"}, err
		},
		reboot: func(cmd int) error { return unix.Reboot(cmd) },
		mounts: baseMounts,
	}
	a.main()
	os.Exit(98)
}

// nsRun is one run of the agent as process 1.
type nsRun struct {
	exit   link.Exit
	err    error
	out    string
	stderr string
	hello  link.Hello
	info   *link.Info
	status syscall.WaitStatus // of process 1
}

func runInit(t *testing.T, job *link.Job, inImage bool, during func(pid int)) nsRun {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("LOUD: not root, process 1 cannot be tested in a namespace; run the tests as root")
	}
	// Not in /tmp, over which the agent may mount.
	dir, err := os.MkdirTemp("/var/tmp", "hvpost-agent-test")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "job.json")
	if inImage {
		b, err := json.Marshal(job)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "host"), os.NewFile(uintptr(fds[1]), "guest")
	conn, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), initEnv+"="+path)
	cmd.ExtraFiles = []*os.File{theirs}
	var log bytes.Buffer
	cmd.Stderr = &log
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		Unshareflags: unix.CLONE_NEWNS,
		Pdeathsig:    unix.SIGKILL,
	}
	if err := cmd.Start(); err != nil {
		theirs.Close()
		conn.Close()
		if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
			t.Skipf("LOUD: no namespaces here (%v): process 1 is not tested", err)
		}
		t.Fatal(err)
	}
	theirs.Close()
	var r nsRun
	var out, errs bytes.Buffer
	cfg := link.HostConfig{
		Stdio:   link.Stdio{In: strings.NewReader("from the host\n"), Out: &out, Err: &errs},
		Hello:   func(h link.Hello) { r.hello = h },
		Info:    func(i link.Info) { r.info = &i },
		Started: func(uint64) { go during(cmd.Process.Pid) },
	}
	if !inImage {
		cfg.Job = job
	}
	h, err := link.NewHost(conn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	r.exit, r.err = h.Run(ctx)
	cmd.Wait()
	r.status = cmd.ProcessState.Sys().(syscall.WaitStatus)
	r.out, r.stderr = out.String(), errs.String()
	if log.Len() > 0 {
		t.Logf("process 1: %s", log.String())
	}
	return r
}

func nothing(int) {}

func TestInitRunsJob(t *testing.T) {
	dir := t.TempDir()
	job := sh(`echo pid $$; hostname; cat; for i in 1 2 3; do (sleep 0.02 &) ; done; sleep 0.1
ps -A -o stat= 2>/dev/null | grep -c Z
grep -q ' /dev/shm tmpfs rw,nosuid' /proc/mounts && echo tmpfs; grep -q ' ` + dir + `/m tmpfs ro' /proc/mounts && echo extra
ls -d /dev/fd/0 /dev/shm; cat /sys/class/net/lo/flags; exit 17`)
	job.Hostname, job.Poweroff, job.Info = "guesthost", true, true
	job.Mounts = []link.Mount{{Source: "none", Target: dir + "/m", Type: "tmpfs", Options: "ro,size=1m"}, {Target: "/nowhere", Type: "nofs"}}
	job.Net = []link.Interface{{Name: "lo", Address: "127.0.0.2/8"}, {Name: "eth9"}}
	job.Modules = []string{"/no/such/module.ko"}
	for _, inImage := range []bool{true, false} {
		r := runInit(t, &job, inImage, nothing)
		if r.err != nil {
			t.Fatal(r.err)
		}
		want := "guesthost\nfrom the host\n0\ntmpfs\nextra\n/dev/fd/0\n/dev/shm\n0x9\n"
		_, got, _ := strings.Cut(r.out, "\n")
		if got != want || r.exit.Code != 17 {
			t.Errorf("in image %v: exit %+v\nout %q\nwant %q\nstderr %q", inImage, r.exit, got, want, r.stderr)
		}
		if !r.status.Signaled() || r.status.Signal() != unix.SIGINT {
			t.Errorf("process 1 ended with %#x, want a power off", r.status)
		}
		var u unix.Utsname
		unix.Uname(&u)
		if r.hello.Release != unix.ByteSliceToString(u.Release[:]) || r.hello.VPs < 1 || r.hello.BoottimeNS == 0 {
			t.Errorf("hello %+v", r.hello)
		}
		// Everything that went wrong on the way is told, and stopped nothing.
		if r.info == nil || len(r.info.Warnings) < 3 {
			t.Fatalf("info %+v", r.info)
		}
		all := strings.Join(r.info.Warnings, "\n")
		for _, w := range []string{"/no/such/module.ko", "eth9", "/nowhere"} {
			if !strings.Contains(all, w) {
				t.Errorf("no warning about %s in %s", w, all)
			}
		}
	}
}

func TestInitTTY(t *testing.T) {
	job := sh("tty; stty size")
	job.TTY, job.Rows, job.Cols, job.Poweroff = true, 11, 22, true
	r := runInit(t, &job, true, nothing)
	if r.err != nil || r.exit.Code != 0 || !strings.Contains(r.out, "/dev/pts/0\r\n11 22\r\n") {
		t.Errorf("%v %+v %q", r.err, r.exit, r.out)
	}
}

func TestInitRefuses(t *testing.T) {
	r := runInit(t, &link.Job{Argv: []string{"no-such"}, Poweroff: true}, true, nothing)
	if r.err != nil || r.exit.Code != 127 || !strings.Contains(r.stderr, "no-such: command not found") {
		t.Errorf("%v %+v %q", r.err, r.exit, r.stderr)
	}
}

// TestInitShutdown tells process 1 to end the machine in each way while a
// command runs that ignores SIGTERM or obeys it.
func TestInitShutdown(t *testing.T) {
	for _, tt := range []struct {
		sig  syscall.Signal
		kind string
		end  syscall.Signal // how reboot(2) ends a PID namespace
	}{
		{unix.SIGUSR2, "poweroff", unix.SIGINT}, {38, "poweroff", unix.SIGINT},
		{unix.SIGTERM, "reboot", unix.SIGHUP}, {unix.SIGINT, "reboot", unix.SIGHUP},
		{unix.SIGUSR1, "halt", unix.SIGINT},
	} {
		// Not to be powered off after the command: the request alone does it.
		job := sh("trap 'echo asked; exit 3' TERM; while :; do sleep 0.02; done")
		r := runInit(t, &job, true, func(pid int) {
			time.Sleep(100 * time.Millisecond)
			syscall.Kill(pid, tt.sig)
		})
		if r.err != nil || r.exit.Code != 3 || r.exit.Shutdown != tt.kind || r.out != "asked\n" {
			t.Errorf("%v: %v %+v %q", tt.sig, r.err, r.exit, r.out)
		}
		if !r.status.Signaled() || r.status.Signal() != tt.end {
			t.Errorf("%v: process 1 ended with %#x", tt.sig, r.status)
		}
	}
}

// TestInitStays: without poweroff in the job the guest waits for its end from
// outside, and keeps obeying a request from inside.
func TestInitStays(t *testing.T) {
	job := sh("(sleep 0.3; kill -USR2 1) >/dev/null 2>&1 & exit 5")
	r := runInit(t, &job, true, nothing)
	if r.err != nil || r.exit.Code != 5 || r.exit.Shutdown != "" || r.status.Signal() != unix.SIGINT {
		t.Errorf("%v %+v %#x", r.err, r.exit, r.status)
	}
}

func TestInitBadJob(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("LOUD: not root")
	}
	a := &agent{jobPath: filepath.Join(t.TempDir(), "job.json")}
	os.WriteFile(a.jobPath, []byte("{"), 0o644)
	if _, err := a.job(nil); err == nil || !strings.Contains(err.Error(), "job.json") {
		t.Errorf("%v", err)
	}
}

func TestIsInit(t *testing.T) {
	if IsInit() {
		t.Error("a test is no init")
	}
}
