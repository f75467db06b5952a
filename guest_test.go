//go:build guest

// Guest tests: they run ./hvpost as a user does, with real kernels, on this
// machine's KVM or in the emulated host. scripts/guest-test.sh builds what
// they need and starts the emulated host once for all of them.
package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hvpost/hvpost/vmm/session"
)

// kernels are those that every guest test of a kernel's behaviour runs on.
var kernels = []string{"debian:6.12", "debian:6.1"}

// perRun bounds one run, with much room for a loaded machine.
const perRun = 4 * time.Minute

// A ran is a finished run of hvpost.
type ran struct {
	code   int
	out    []byte
	err    string // stderr
	result *session.Result
	took   time.Duration
}

// hvpost runs ./hvpost run with a result file.
func hvpost(t *testing.T, stdin []byte, args ...string) ran {
	t.Helper()
	return start(t, stdin, args...)(nil)
}

// start starts ./hvpost run; the function returned calls during, if any, and
// waits for the end.
func start(t *testing.T, stdin []byte, args ...string) func(during func(*os.Process, *output)) ran {
	t.Helper()
	bin, err := filepath.Abs("hvpost")
	if err != nil {
		t.Fatal(err)
	}
	result := filepath.Join(t.TempDir(), "result.json")
	ctx, cancel := context.WithTimeout(context.Background(), perRun)
	cmd := exec.CommandContext(ctx, bin, append([]string{"run", "--result", result}, args...)...)
	var out output
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &stderr
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	return func(during func(*os.Process, *output)) ran {
		t.Helper()
		defer cancel()
		if during != nil {
			during(cmd.Process, &out)
		}
		cmd.Wait()
		if ctx.Err() != nil {
			t.Fatalf("hvpost run %q did not end within %v\n%s", args, perRun, stderr.String())
		}
		r := ran{code: cmd.ProcessState.ExitCode(), out: out.bytes(), err: stderr.String(), took: time.Since(begin)}
		if b, err := os.ReadFile(result); err == nil && len(b) > 0 {
			r.result = new(session.Result)
			if err := json.Unmarshal(b, r.result); err != nil {
				t.Errorf("result file: %v", err)
			}
		}
		for l := range strings.Lines(r.err) {
			if strings.HasPrefix(l, "panic:") || strings.Contains(l, "goroutine ") {
				t.Fatalf("hvpost crashed:\n%s", r.err)
			}
		}
		return r
	}
}

// output collects what a process prints, and lets a test wait for it.
type output struct {
	mu  sync.Mutex
	b   []byte
	got sync.Cond
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b = append(o.b, p...)
	if o.got.L != nil {
		o.got.Broadcast()
	}
	return len(p), nil
}

func (o *output) bytes() []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b
}

// wait returns when the text was printed.
func (o *output) wait(t *testing.T, text string) {
	t.Helper()
	late := time.AfterFunc(perRun, func() { o.Write([]byte("\n(the test gave up waiting)\n" + text)) })
	defer late.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.got.L = &o.mu
	for !bytes.Contains(o.b, []byte(text)) {
		o.got.Wait()
	}
}

// want fails unless the run ended as said.
func (r ran) want(t *testing.T, code int, reason session.Reason) {
	t.Helper()
	if r.code != code {
		t.Fatalf("exit code %d, want %d\nstdout: %q\nstderr: %s", r.code, code, r.out, r.err)
	}
	if r.result == nil {
		t.Fatalf("no result file\nstderr: %s", r.err)
	}
	if r.result.Reason != reason {
		t.Fatalf("reason %q (%s), want %q", r.result.Reason, r.result.Detail, reason)
	}
}

func TestGuest_FindsHyperV(t *testing.T) {
	for _, k := range kernels {
		for _, cpus := range []int{1, 2, 4} {
			t.Run(fmt.Sprintf("%s/%d", k, cpus), func(t *testing.T) {
				r := hvpost(t, nil, "-k", k, "-c", fmt.Sprint(cpus), "--", "sh", "-c", "nproc; dmesg")
				r.want(t, 0, session.ReasonExit)
				log := string(r.out)
				first, _, _ := strings.Cut(log, "\n")
				if first != fmt.Sprint(cpus) {
					t.Errorf("nproc printed %q", first)
				}
				for _, line := range []string{"Hypervisor detected: Microsoft Hyper-V", "Vmbus version:5.3"} {
					if !strings.Contains(log, line) {
						t.Errorf("kernel log lacks %q", line)
					}
				}
				for _, bad := range []string{"unchecked MSR access", "hv_post_msg() failed", "Unable to connect to host"} {
					if strings.Contains(log, bad) {
						t.Errorf("kernel log has %q", bad)
					}
				}
				bus := r.result.VMBus
				if bus == nil || bus.Version != "5.3" {
					t.Fatalf("VMBus in the result: %+v", bus)
				}
				names := map[string]bool{}
				for _, d := range bus.Devices {
					if d.State != "open" || d.Driver != "hv_utils" {
						t.Errorf("device %s: state %q, driver %q", d.Name, d.State, d.Driver)
					}
					names[d.Name] = true
				}
				for _, n := range []string{"heartbeat", "shutdown", "timesync"} {
					if !names[n] {
						t.Errorf("no %s among %v", n, names)
					}
				}
				if p := r.result.BootMS; !(p.Prepared <= p.FirstRun && p.FirstRun < p.Agent && p.Agent < p.Command && p.Command <= p.Exit && p.Exit <= p.End) {
					t.Errorf("boot phases out of order: %+v", p)
				}
				if len(r.result.Exits) == 0 {
					t.Error("no exits counted")
				}
			})
		}
	}
}

func TestGuest_EightProcessors(t *testing.T) {
	r := hvpost(t, nil, "-c", "8", "--", "nproc")
	r.want(t, 0, session.ReasonExit)
	if string(r.out) != "8\n" {
		t.Errorf("nproc printed %q", r.out)
	}
}

func TestGuest_StreamsAndCode(t *testing.T) {
	r := hvpost(t, nil, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
	r.want(t, 7, session.ReasonExit)
	if string(r.out) != "out\n" {
		t.Errorf("stdout %q", r.out)
	}
	var own, rest []string
	for l := range strings.Lines(r.err) {
		if strings.HasPrefix(l, "hvpost:") {
			own = append(own, l)
		} else {
			rest = append(rest, l)
		}
	}
	if strings.Join(rest, "") != "err\n" {
		t.Errorf("stderr beside hvpost's own lines %q: %q", own, rest)
	}
	r = hvpost(t, nil, "-q", "--", "sh", "-c", "echo err >&2")
	r.want(t, 0, session.ReasonExit)
	if r.err != "err\n" {
		t.Errorf("stderr with -q: %q", r.err)
	}
}

func TestGuest_BinaryStreams(t *testing.T) {
	for _, k := range kernels {
		t.Run(k, func(t *testing.T) {
			data := make([]byte, 1_000_000)
			rng := rand.New(rand.NewPCG(1, 2))
			for i := range data {
				data[i] = byte(rng.Uint32())
			}
			r := hvpost(t, data, "-k", k, "--", "cat")
			r.want(t, 0, session.ReasonExit)
			if sha256.Sum256(r.out) != sha256.Sum256(data) {
				t.Errorf("%d bytes came back, of %d", len(r.out), len(data))
			}
		})
	}
}

func TestGuest_Panic(t *testing.T) {
	for _, k := range kernels {
		t.Run(k, func(t *testing.T) {
			r := hvpost(t, nil, "-k", k, "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
			r.want(t, codePanic, session.ReasonPanic)
			if !strings.Contains(r.result.Detail, "Kernel panic - not syncing: sysrq triggered crash") {
				t.Errorf("detail %q", r.result.Detail)
			}
			if !strings.Contains(r.err, "sysrq triggered crash") {
				t.Errorf("stderr does not name the panic: %s", r.err)
			}
		})
	}
}

func TestGuest_ResetAndTripleFault(t *testing.T) {
	r := hvpost(t, nil, "--", "sh", "-c", "echo b > /proc/sysrq-trigger")
	r.want(t, codeNoResult, session.ReasonReset)
	r = hvpost(t, nil, "-a", "reboot=t", "--", "sh", "-c", "echo b > /proc/sysrq-trigger")
	r.want(t, codeTripleFault, session.ReasonTripleFault)
	if len(r.result.VPs) != 1 || !strings.Contains(r.err, "RIP") {
		t.Errorf("no registers: %s", r.err)
	}
}

func TestGuest_Timeout(t *testing.T) {
	r := hvpost(t, nil, "--timeout", "20s", "--", "sleep", "600")
	r.want(t, codeTimeout, session.ReasonTimeout)
	if !strings.Contains(r.err, "RIP") {
		t.Errorf("no registers: %s", r.err)
	}
}

// A guest whose init is something else never answers, and may talk without
// end meanwhile.
func TestGuest_BootTimeout_NoisyInit(t *testing.T) {
	r := hvpost(t, nil, "--boot-timeout", "15s", "--file", "/usr/bin/yes:/other-init", "-a", "rdinit=/other-init", "--", "true")
	r.want(t, codeTimeout, session.ReasonBootTimeout)
	if n := len(r.result.Tail); n != 50 || r.result.Tail[10] != "y" {
		t.Errorf("%d lines of the console", n)
	}
	if !strings.Contains(r.err, "RIP") {
		t.Errorf("no registers: %s", r.err)
	}
}

func TestGuest_Terminate_ShutsDownThroughTheDevice(t *testing.T) {
	for _, k := range kernels {
		t.Run(k, func(t *testing.T) {
			run := start(t, nil, "-k", k, "--", "sh", "-c", "trap 'echo term; exit 3' TERM; echo up; while :; do sleep 1; done")
			r := run(func(p *os.Process, out *output) {
				out.wait(t, "up\n")
				p.Signal(syscall.SIGTERM)
			})
			if r.code != 128+int(syscall.SIGTERM) {
				t.Fatalf("code %d: %s", r.code, r.err)
			}
			// The command was told, so the guest's own shutdown took its course.
			if string(r.out) != "up\nterm\n" {
				t.Errorf("stdout %q", r.out)
			}
			if r.result == nil || r.result.Reason != session.ReasonStopped {
				t.Errorf("result %+v", r.result)
			}
		})
	}
}

func TestGuest_CannotRun(t *testing.T) {
	r := hvpost(t, nil, "--", "no-such-command-anywhere")
	r.want(t, codeNotFound, session.ReasonNotFound)
	data := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(data, []byte("not a program"), 0o644); err != nil {
		t.Fatal(err)
	}
	r = hvpost(t, nil, "--file", data+":/data", "--", "/data")
	r.want(t, codeCannotRun, session.ReasonCannotRun)
}

func TestGuest_VMBusVersions(t *testing.T) {
	for _, v := range []string{"2.4", "3.0", "4.0", "4.1", "5.0", "5.1", "5.2"} {
		t.Run(v, func(t *testing.T) {
			k := kernels[0]
			if v == "4.1" || v == "5.0" {
				k = kernels[1]
			}
			r := hvpost(t, nil, "-k", k, "--vmbus-max-version", v, "--", "true")
			r.want(t, 0, session.ReasonExit)
			if r.result.VMBus == nil || r.result.VMBus.Version != v {
				t.Errorf("VMBus %+v", r.result.VMBus)
			}
		})
	}
}

func TestGuest_BootProtocols(t *testing.T) {
	for _, b := range []string{"bzimage", "pvh"} {
		t.Run(b, func(t *testing.T) {
			r := hvpost(t, nil, "--boot", b, "--", "true")
			r.want(t, 0, session.ReasonExit)
		})
	}
}

func TestGuest_Memory(t *testing.T) {
	for _, m := range []string{"96M", "5G"} {
		t.Run(m, func(t *testing.T) {
			r := hvpost(t, nil, "-m", m, "-k", "debian:6.1", "--", "cat", "/proc/meminfo")
			r.want(t, 0, session.ReasonExit)
			var kb int
			fmt.Sscanf(string(r.out), "MemTotal: %d kB", &kb)
			want, _ := session.ParseSize(m)
			// The kernel keeps part of it: a fixed part, and page structs.
			if low := int(want>>10)*9/10 - 64<<10; kb < low || kb > int(want>>10) {
				t.Errorf("MemTotal %d kB with -m %s", kb, m)
			}
		})
	}
}

func TestGuest_GoTest(t *testing.T) {
	bin, err := filepath.Abs("hvpost")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "test", "-count=1", "-exec", bin+" run -q -m 1G --", "-run", "TestReadWrite|TestLoad", "-v", "./guest")
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS: TestReadWrite_Edges")) {
		t.Errorf("go test -exec: %v\n%s", err, out)
	}
}

func TestGuest_ConsoleFlood(t *testing.T) {
	log := filepath.Join(t.TempDir(), "console.log")
	r := hvpost(t, nil, "--console-log", log, "--", "sh", "-c", "seq 1 3000 > /dev/console; echo done")
	r.want(t, 0, session.ReasonExit)
	if string(r.out) != "done\n" {
		t.Errorf("stdout %q", r.out)
	}
	b, err := os.ReadFile(log)
	if err != nil || !bytes.Contains(b, []byte("2999")) {
		t.Errorf("console log of %d bytes, %v", len(b), err)
	}
}
