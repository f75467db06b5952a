package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hvpost/hvpost/guest/link"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/vmm"
)

func TestParseSize(t *testing.T) {
	for in, want := range map[string]uint64{
		"512M": 512 << 20, "2G": 2 << 30, "64": 64 << 20, "1024K": 1 << 20, "1T": 1 << 40,
		"512MiB": 512 << 20, "2gb": 2 << 30, " 1g ": 1 << 30, "0": 0,
	} {
		if got, err := ParseSize(in); err != nil || got != want {
			t.Errorf("%q: %d, %v; want %d", in, got, err, want)
		}
	}
	for _, in := range []string{"", "M", "x", "-1", "1.5G", "512B", "1P", "99999999999999999999", "18446744073709551615G", "1 G"} {
		if got, err := ParseSize(in); err == nil {
			t.Errorf("%q: accepted as %d", in, got)
		}
	}
}

func TestFormatSize_RoundTrips(t *testing.T) {
	for _, n := range []uint64{64 << 20, 512 << 20, 1 << 30, 5 << 30, 1025 << 20} {
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Errorf("%d: %s, %d, %v", n, FormatSize(n), got, err)
		}
	}
}

func TestParseVMBusVersion(t *testing.T) {
	if major, minor, err := ParseVMBusVersion("5.2"); err != nil || major != 5 || minor != 2 {
		t.Errorf("5.2: %d.%d, %v", major, minor, err)
	}
	for _, s := range []string{"", "5", "6.0", "1.1", "5.4", "v5.3"} {
		if _, _, err := ParseVMBusVersion(s); err == nil || !strings.Contains(err.Error(), "5.3") {
			t.Errorf("%q: %v", s, err)
		}
	}
}

func TestOptions_Check(t *testing.T) {
	for name, o := range map[string]Options{
		"little memory": {Memory: 63 << 20},
		"much memory":   {Memory: 1 << 50},
		"odd memory":    {Memory: 64<<20 + 4096},
		"many CPUs":     {CPUs: 65},
		"negative CPUs": {CPUs: -1},
		"timeout":       {Timeout: -1},
		"protocol":      {Boot: "uefi"},
	} {
		if err := o.check(); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
	var o Options
	if err := o.check(); err != nil || o.Memory != DefaultMemory || o.CPUs != 1 || o.Boot != "auto" {
		t.Errorf("defaults: %+v, %v", o, err)
	}
}

// The agent must find the window in the command line that is given to it.
func TestWindowParameter_IsWhatTheAgentParses(t *testing.T) {
	gpa, size, ok, err := link.ParseCmdline("quiet " + windowParameter() + " x")
	if err != nil || !ok || gpa != vmm.WindowBase || size != link.WindowSize {
		t.Errorf("%#x %#x %v %v", gpa, size, ok, err)
	}
}

func TestCmdline(t *testing.T) {
	p := &Plan{opts: Options{Append: []string{"a=1 b", "c"}}}
	got := p.cmdline("link")
	if !strings.HasPrefix(got, "console=ttyS0 panic=-1") || !strings.HasSuffix(got, " quiet a=1 b c link") {
		t.Errorf("default: %q", got)
	}
	p.opts.Verbose = true
	if strings.Contains(p.cmdline(""), "quiet") {
		t.Error("quiet though verbose")
	}
	p.opts.Cmdline = "console=none"
	if got := p.cmdline("link"); got != "console=none a=1 b c link" {
		t.Errorf("replaced: %q", got)
	}
}

func TestConsole_TailAndPanic(t *testing.T) {
	var through bytes.Buffer
	panics := 0
	c := &console{w: &through, panicked: func() { panics++ }}
	for i := range 60 {
		fmt.Fprintf(c, "line %d\r\n", i)
	}
	// A panic comes in pieces, with a time stamp and a level.
	for _, s := range []string{"<0>[   12.345678] Kernel pa", "nic - not syncing: boom\n", "[   12.4] more\n", "half"} {
		c.Write([]byte(s))
	}
	if c.Panic() != "Kernel panic - not syncing: boom" || panics != 1 {
		t.Errorf("panic %q, told %d times", c.Panic(), panics)
	}
	tail := c.Tail()
	if len(tail) != tailLines || tail[0] != "line 13" || tail[len(tail)-1] != "half" {
		t.Errorf("tail of %d lines, %q ... %q", len(tail), tail[0], tail[len(tail)-1])
	}
	if !strings.Contains(through.String(), "line 0\r\n") {
		t.Error("not passed through as it was")
	}
}

// A command that prints the words of a panic inside a line has not panicked.
func TestConsole_MentionIsNoPanic(t *testing.T) {
	c := &console{}
	c.Write([]byte("echo: Kernel panic - not syncing: no\nfoo Kernel panic - not syncing\n"))
	if c.Panic() != "" {
		t.Errorf("taken for a panic: %q", c.Panic())
	}
}

// What a guest prints must neither grow without bound nor reach a terminal as
// control characters.
func TestConsole_HostileText(t *testing.T) {
	c := &console{}
	c.Write(bytes.Repeat([]byte("x"), 1<<20))
	c.Write([]byte("\n\x1b[2J\x07evil\n"))
	tail := c.Tail()
	if len(tail) != 2 || len(tail[0]) != maxLine {
		t.Fatalf("%d lines, first of %d bytes", len(tail), len(tail[0]))
	}
	if strings.ContainsAny(tail[1], "\x1b\x07") {
		t.Errorf("control characters kept: %q", tail[1])
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestConsole_BrokenWriter_KeepsTheTail(t *testing.T) {
	c := &console{w: failing{}}
	if _, err := c.Write([]byte("a\n")); err == nil {
		t.Error("the error was swallowed")
	}
	if _, err := c.Write([]byte("b\n")); err != nil {
		t.Errorf("reported twice: %v", err)
	}
	if got := c.Tail(); len(got) != 2 {
		t.Errorf("tail %q", got)
	}
}

func TestVerdict(t *testing.T) {
	exit := func(e link.Exit) *link.Exit { return &e }
	for _, c := range []struct {
		name    string
		run     *run
		console string
		outcome vmm.Outcome
		want    Reason
	}{
		{"command ended", &run{exit: exit(link.Exit{Reason: link.ReasonExit})}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonExit},
		{"not found", &run{exit: exit(link.Exit{Reason: link.ReasonNotFound})}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonNotFound},
		{"cannot run", &run{exit: exit(link.Exit{Reason: link.ReasonExecFailed})}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonCannotRun},
		{"agent failed", &run{exit: exit(link.Exit{Reason: link.ReasonAgent})}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonNoResult},
		{"told to reboot", &run{exit: exit(link.Exit{Reason: link.ReasonSignal, Signal: 15, Shutdown: "reboot"})}, "", vmm.Outcome{Cause: vmm.CauseReset}, ReasonReset},
		{"told to power off", &run{exit: exit(link.Exit{Reason: link.ReasonExit, Shutdown: "poweroff"})}, "", vmm.Outcome{Cause: vmm.CausePowerOff}, ReasonNoResult},
		{"crash MSRs", &run{}, "", vmm.Outcome{Cause: vmm.CauseCrash, Crash: &synic.CrashReport{Message: []byte("<1>[ 1.0] BUG\n<0>[    1.2] Kernel panic - not syncing: x\n")}}, ReasonPanic},
		{"crash without text", &run{}, "", vmm.Outcome{Cause: vmm.CauseCrash, Crash: &synic.CrashReport{}}, ReasonPanic},
		{"panic, then reset", &run{}, "Kernel panic - not syncing: y\n", vmm.Outcome{Cause: vmm.CauseReset}, ReasonPanic},
		{"reset", &run{}, "", vmm.Outcome{Cause: vmm.CauseReset}, ReasonReset},
		{"triple fault", &run{}, "", vmm.Outcome{Cause: vmm.CauseTripleFault}, ReasonTripleFault},
		{"KVM gave up", &run{}, "", vmm.Outcome{Cause: vmm.CauseFault}, ReasonTripleFault},
		{"power-off", &run{}, "", vmm.Outcome{Cause: vmm.CausePowerOff}, ReasonNoResult},
		{"timeout", &run{reason: ReasonTimeout}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonTimeout},
		{"stopped, command ended", &run{reason: ReasonStopped, exit: exit(link.Exit{Reason: link.ReasonSignal, Signal: 15})}, "", vmm.Outcome{Cause: vmm.CauseStopped}, ReasonStopped},
	} {
		c.run.console = &console{}
		c.run.console.Write([]byte(c.console))
		got, detail := c.run.verdict(c.outcome)
		if got != c.want {
			t.Errorf("%s: %s (%s), want %s", c.name, got, detail, c.want)
		}
		if got == ReasonPanic && detail == "" {
			t.Errorf("%s: no detail", c.name)
		}
	}
}

func TestResult_WriteFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "r.json")
	want := Result{Reason: ReasonPanic, ExitCode: 121, Detail: "x"}
	if err := want.WriteFile(path); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got Result
	if err := json.Unmarshal(b, &got); err != nil || got.Reason != ReasonPanic || got.ExitCode != 121 {
		t.Errorf("%+v, %v", got, err)
	}
	if es, _ := os.ReadDir(dir); len(es) != 1 {
		t.Errorf("left behind: %v", es)
	}
	if err := want.WriteFile(filepath.Join(dir, "no", "r.json")); err == nil {
		t.Error("a directory that does not exist was accepted")
	}
}
