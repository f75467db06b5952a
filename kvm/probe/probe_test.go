package probe

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/kvm/kvmtest"
)

func TestReadCPUInfo(t *testing.T) {
	const amd = "processor\t: 0\nvendor_id\t: AuthenticAMD\nmodel name\t: AMD EPYC 7B13\n" +
		"flags\t\t: fpu vme svm hypervisor\nbugs\t\t: none\n\nprocessor\t: 1\nvendor_id\t: AuthenticAMD\nflags\t: vmx\n"
	const intel = "vendor_id\t: GenuineIntel\nmodel name\t: Xeon: a name with a colon\nflags\t\t: fpu vmx\n"
	const arm = "processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd svmfoo\n\n"
	for _, c := range []struct {
		text string
		want Host
	}{
		{amd, Host{Vendor: "AuthenticAMD", Model: "AMD EPYC 7B13", SVM: true, Hypervisor: true}},
		{intel, Host{Vendor: "GenuineIntel", Model: "Xeon: a name with a colon", VMX: true}},
		{arm, Host{}},
		{"", Host{}},
		{"flags : svm " + strings.Repeat("x", 2*maxCPUInfo), Host{}}, // cut, not taken
	} {
		var h Host
		h.readCPUInfo(strings.NewReader(c.text))
		if c.want.Vendor != "" && !reflect.DeepEqual(h, c.want) {
			t.Errorf("%.40q: %+v", c.text, h)
		}
		if c.want.Vendor == "" && (h.VMX || h.Vendor != "") {
			t.Errorf("%.40q: %+v", c.text, h)
		}
	}
}

func TestModules(t *testing.T) {
	dir := t.TempDir()
	for _, n := range []string{"kvm", "kvm_amd", "irqbypass"} {
		if err := os.Mkdir(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if m := modules(dir); !slices.Equal(m, []string{"kvm", "kvm_amd"}) {
		t.Errorf("%q", m)
	}
	if m := modules(filepath.Join(dir, "none")); len(m) != 0 {
		t.Errorf("%q", m)
	}
}

func TestVerdict(t *testing.T) {
	good := Instruction{Name: "int3", Linux: true, Works: true}
	bad := Instruction{Name: "xsave", Linux: true, Error: errEmulation.Error()}
	spare := Instruction{Name: "popcnt", Error: errEmulation.Error()}
	for _, c := range []struct {
		ns    float64
		tried []Instruction
		state State
		word  string
	}{
		{0.4, []Instruction{good, spare}, Real, "0.4 ns"},
		{0.4, []Instruction{good, bad}, Software, "xsave"},
		{550, []Instruction{good}, Software, "550 ns"},
		{slow, nil, Software, "50 ns"},
		{slow - 1, nil, Real, "49 ns"},
	} {
		if state, why := verdict(c.ns, c.tried); state != c.state || !strings.Contains(why, c.word) {
			t.Errorf("%v ns, %v: %s, %q", c.ns, c.tried, state, why)
		}
	}
}

func TestStateOf(t *testing.T) {
	for err, want := range map[error]State{
		kvm.ErrMissing: Missing, kvm.ErrDenied: Denied, kvm.ErrNoHardware: NoHardware,
		kvm.ErrAPIVersion: Broken, kvm.ErrNotKVM: Broken, unix.EBUSY: Broken,
	} {
		if got := stateOf(errors.Join(errors.New("/dev/kvm"), err)); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

// TestFix: every state but a good one has a way out, of single lines, and the
// emulated host is always one.
func TestFix(t *testing.T) {
	intel := Host{Vendor: "GenuineIntel", VMX: true}
	amdGuest := Host{Vendor: "AuthenticAMD", Hypervisor: true}
	for _, c := range []struct {
		state State
		host  Host
		words []string
	}{
		{Missing, intel, []string{"sudo modprobe kvm_intel", "/etc/modules-load.d", "docker run --device /x/kvm"}},
		{Missing, amdGuest, []string{"kvm_amd nested=1", "outer host"}},
		{Denied, intel, []string{"usermod -aG kvm", "udevadm", `KERNEL=="kvm"`, "chmod 0666 /x/kvm", "docker run --device /x/kvm"}},
		{NoHardware, intel, []string{"firmware"}},
		{NoHardware, amdGuest, []string{"kvm_amd nested=1"}},
		{Software, amdGuest, []string{"--host kvm"}},
		{Software, intel, []string{"modprobe kvm_intel"}},
		{Broken, intel, []string{"update the kernel", "KVM_CAP_SYNC_REGS"}},
	} {
		r := Report{Path: "/x/kvm", State: c.state, Host: c.host,
			Capabilities: []Capability{{"KVM_CAP_SYNC_REGS", false, true}, {"KVM_CAP_XCRS", false, false}}}
		fix := r.fix()
		all := strings.Join(fix, "\n")
		for _, w := range append(c.words, "--host emulated") {
			if !strings.Contains(all, w) {
				t.Errorf("%s on %+v: %q lacks %q", c.state, c.host, fix, w)
			}
		}
		for _, f := range fix {
			if f == "" || strings.Contains(f, "\n") {
				t.Errorf("%s: bad line %q", c.state, f)
			}
		}
		if strings.Contains(all, "XCRS") {
			t.Errorf("%s: %q names what is not needed", c.state, fix)
		}
	}
	busy := Report{Path: "/x/kvm"}
	busy.fail(fmt.Errorf("/x/kvm: %w", unix.EBUSY))
	if fix := busy.fix(); busy.State != Broken || !strings.Contains(fix[0], "other hypervisor") {
		t.Errorf("busy: %s, %q", busy.State, fix)
	}
	if fix := (&Report{State: Real}).fix(); fix != nil {
		t.Errorf("real: %q", fix)
	}
}

func TestProbeWithoutDevice(t *testing.T) {
	for path, want := range map[string]State{
		filepath.Join(t.TempDir(), "kvm"): Missing,
		"/dev/null":                       Broken,
	} {
		r := Probe(path)
		if r.State != want || !strings.Contains(r.Reason, path) || len(r.Fix) == 0 || r.OK() || r.Path != path {
			t.Errorf("%s: %+v", path, r)
		}
		ok, reason, err := CanRunLinux(path)
		if ok || !strings.Contains(reason, path) || (err != nil) != (want == Broken) {
			t.Errorf("%s: Linux %v, %q, %v", path, ok, reason, err)
		}
	}
}

// TestProbe examines the device of this machine and compares the verdict with
// what the modules say.
func TestProbe(t *testing.T) {
	kvmtest.Need(t)
	t0 := time.Now()
	r := Probe("")
	took := time.Since(t0)
	t.Logf("%s in %v: %s", r.State, took, r.Reason)
	if took > 2*time.Second {
		t.Errorf("took %v", took)
	}
	if r.Path != kvm.DefaultPath || r.APIVersion != 12 || r.VCPUs < 1 || len(r.Capabilities) != len(caps) ||
		len(r.Instructions) != len(trials) || r.NsPerInstruction <= 0 || r.Host.Kernel == "" {
		t.Errorf("%+v", r)
	}
	hardware := (r.Host.VMX || r.Host.SVM) &&
		(slices.Contains(r.Host.Modules, "kvm_amd") || slices.Contains(r.Host.Modules, "kvm_intel"))
	if hardware && (r.State != Real || !r.OK() || len(r.Fix) != 0 || r.Nested != r.Host.Hypervisor) {
		t.Errorf("hardware, but %+v", r)
	}
	if slices.Contains(r.Host.Modules, "kvm_pvm") && (r.State != Software || r.OK() || r.NsPerInstruction < slow) {
		t.Errorf("kvm_pvm, but %+v", r)
	}
	if r.State == Real {
		for _, i := range r.Instructions {
			if i.Linux && !i.Works {
				t.Errorf("%+v", i)
			}
		}
	}
	ok, reason, err := CanRunLinux("")
	if err != nil || ok != r.OK() || reason == "" {
		t.Errorf("Linux %v, %q, %v; the probe says %s", ok, reason, err, r.State)
	}
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, r) {
		t.Errorf("JSON does not come back: %v\n%s", err, b)
	}
}

// TestCanRunLinuxIsQuick takes the best of a few, for a machine that is busy.
func TestCanRunLinuxIsQuick(t *testing.T) {
	kvmtest.Need(t)
	best := time.Hour
	for range 5 {
		t0 := time.Now()
		if _, _, err := CanRunLinux(""); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(t0))
	}
	t.Logf("best of five takes %v", best)
	if best > 300*time.Millisecond { // ten times what it may take on an idle machine
		t.Errorf("best of five takes %v", best)
	}
}

// TestStuckGuest: a guest that never comes out is ended in time, and the
// subject is good for the next one.
func TestStuckGuest(t *testing.T) {
	s, err := newSubject(kvmtest.Need(t))
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	i := s.attempt(trial{name: "loop", port: portDone, code: []byte{0xEB, 0xFE}})
	if i.Works || !strings.Contains(i.Error, errTime.Error()) {
		t.Errorf("%+v", i)
	}
	i = s.attempt(trial{name: "ud2", port: portDone, code: []byte{0x0F, 0x0B}})
	if i.Works || !strings.Contains(i.Error, "invalid opcode") {
		t.Errorf("%+v", i)
	}
	i = s.attempt(trial{name: "port", port: portTrap, code: nil})
	if i.Works || !strings.Contains(i.Error, "0x80") {
		t.Errorf("%+v", i)
	}
	if i = s.attempt(trial{name: "nop", port: portDone, code: []byte{0x90}}); !i.Works || i.Error != "" {
		t.Errorf("%+v", i)
	}
}
