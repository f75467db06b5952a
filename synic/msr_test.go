package synic_test

import (
	"fmt"
	"math"
	"testing"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/synic/synictest"
)

// fakeAPIC stores what it is told.
type fakeAPIC struct {
	eois int
	icr  uint64
	tpr  uint8
}

func (a *fakeAPIC) EOI(hv.VPIndex)                         { a.eois++ }
func (a *fakeAPIC) ICR(hv.VPIndex) uint64                  { return a.icr }
func (a *fakeAPIC) SetICR(_ hv.VPIndex, v uint64) bool     { a.icr = v; return v != 0xBAD }
func (a *fakeAPIC) TPR(hv.VPIndex) uint8                   { return a.tpr }
func (a *fakeAPIC) SetTPR(_ hv.VPIndex, v uint8) (ok bool) { a.tpr = v; return v != 0xBB }

// msrRule says how one register behaves right after a reset.
type msrRule struct {
	msr       hv.MSR
	privilege hv.Privileges // without it: #GP
	feature   uint32        // likewise
	noRead    bool
	noWrite   bool
	reset     uint64
	writes    []msrWrite // one after the other
}

// msrWrite is a value, whether it is refused, and what is read afterwards.
type msrWrite struct {
	val  uint64
	gp   bool
	then uint64
}

const ones = math.MaxUint64

var pageWrites = []msrWrite{
	{val: 0x5000, then: 0x5000},
	{val: 0x5FFF, then: 0x5001}, // 11:1 keep their value
	{val: 0, then: 0},
	{val: 0x000F_FFFF_FFFF_F001, then: 0x000F_FFFF_FFFF_F001}, // outside RAM, and outside the address space
	{val: ones, then: 0xFFFF_FFFF_FFFF_F001},
	{val: 0, then: 0},
}

var msrRules = func() []msrRule {
	rules := []msrRule{
		{msr: hv.MSRGuestOSID, privilege: hv.AccessHypercall, writes: []msrWrite{{val: 5, then: 5}, {val: ones, then: ones}, {val: 0, then: 0}}},
		// GUEST_OS_ID is 0 here: the enable bit stays 0.
		{msr: hv.MSRHypercall, privilege: hv.AccessHypercall, writes: []msrWrite{{val: 0x5001, then: 0x5000}, {val: 0x6FFC, then: 0x6000}, {val: 1 << 40, gp: true, then: 0x6000}}},
		{msr: hv.MSRVPIndex, privilege: hv.AccessVPIndex, noWrite: true, reset: 1},
		{msr: hv.MSRReset, privilege: hv.AccessReset, writes: []msrWrite{{val: 1}, {val: ones}, {val: 0}}},
		{msr: hv.MSRVPRuntime, privilege: hv.AccessVPRuntime, noWrite: true, reset: 1000},
		{msr: hv.MSRTimeRefCount, privilege: hv.AccessRefCounter, noWrite: true, reset: 1000},
		{msr: hv.MSRReferenceTSC, privilege: hv.AccessReferenceTSC, writes: pageWrites},
		{msr: hv.MSRTSCFrequency, privilege: hv.AccessFrequency, feature: hv.FeatureFrequencyMSRs, noWrite: true, reset: synictest.TSCHz},
		{msr: hv.MSRAPICFrequency, privilege: hv.AccessFrequency, feature: hv.FeatureFrequencyMSRs, noWrite: true, reset: synictest.APICHz},
		{msr: hv.MSREOI, privilege: hv.AccessAPIC, noRead: true, writes: []msrWrite{{val: 0}, {val: ones}}},
		{msr: hv.MSRICR, privilege: hv.AccessAPIC, writes: []msrWrite{{val: 0x1_0000_00F3, then: 0x1_0000_00F3}, {val: 0xBAD, gp: true, then: 0xBAD}}},
		{msr: hv.MSRTPR, privilege: hv.AccessAPIC, writes: []msrWrite{{val: 0xFF, then: 0xFF}, {val: 0x100, gp: true, then: 0xFF}, {val: 0xBB, gp: true, then: 0xBB}}},
		{msr: hv.MSRVPAssistPage, privilege: hv.AccessAPIC, writes: pageWrites},
		{msr: hv.MSRSCONTROL, privilege: hv.AccessSynIC, writes: []msrWrite{{val: 1, then: 1}, {val: ones, then: 1}, {val: ones - 1, then: 0}}},
		{msr: hv.MSRSVERSION, privilege: hv.AccessSynIC, noWrite: true, reset: 1},
		{msr: hv.MSRSIEFP, privilege: hv.AccessSynIC, writes: pageWrites},
		{msr: hv.MSRSIMP, privilege: hv.AccessSynIC, writes: pageWrites},
		{msr: hv.MSREOM, privilege: hv.AccessSynIC, writes: []msrWrite{{val: 0}, {val: ones}}},
		{msr: hv.MSRGuestIdle, privilege: hv.AccessGuestIdle, noWrite: true},
		{msr: hv.MSRCrashCtl, feature: hv.FeatureCrashMSRs, reset: 3 << 62, writes: []msrWrite{{val: ones, then: 3 << 62}, {val: 0, then: 3 << 62}}},
		{msr: hv.MSRTSCInvariantControl, privilege: hv.AccessTSCInvariant, writes: []msrWrite{{val: 1, then: 1}, {val: 2, gp: true, then: 1}, {val: ones, gp: true, then: 1}, {val: 0, then: 0}}},
	}
	for n := uint8(0); n < hv.SINTCount; n++ {
		rules = append(rules, msrRule{msr: hv.MSRSINT(n), privilege: hv.AccessSynIC, reset: 0x10000, writes: []msrWrite{
			{val: 0x10, then: 0x10},
			{val: 0x0F, gp: true, then: 0x10},
			{val: 0, gp: true, then: 0x10},
			{val: 0x4000F, gp: true, then: 0x10}, // polling is not masked
			{val: 0x10000, then: 0x10000},
			{val: 0x1000F, then: 0x1000F},
			{val: 0x400FF, then: 0x400FF},
			{val: ones, then: 0x700FF},
			{val: 0xFFFF_FFFF_FFF0_FF00 | 0xF3, then: 0xF3},
		}})
	}
	for n := range hv.TimerCount {
		rules = append(rules,
			msrRule{msr: hv.MSRSTIMERConfig(n), privilege: hv.AccessSyntheticTimers, writes: []msrWrite{
				{val: 0x2000E, then: 0x2000E},
				{val: 0x2000, gp: true, then: 0x2000E},
				{val: 0x8000, gp: true, then: 0x2000E},
				{val: 1 << 20, gp: true, then: 0x2000E},
				{val: 1 << 63, gp: true, then: 0x2000E},
				{val: 0x00001, then: 0},      // a message to SINT 0
				{val: 0x01001, then: 0x1001}, // direct mode needs no SINT
				{val: 0xF1FFE, then: 0xF1FFE},
				{val: 0, then: 0},
			}},
			msrRule{msr: hv.MSRSTIMERCount(n), privilege: hv.AccessSyntheticTimers, writes: []msrWrite{{val: ones, then: ones}, {val: 0, then: 0}}})
	}
	for n := hv.MSRCrashP0; n <= hv.MSRCrashP4; n++ {
		rules = append(rules, msrRule{msr: n, feature: hv.FeatureCrashMSRs, writes: []msrWrite{{val: ones, then: ones}, {val: 7, then: 7}}})
	}
	return rules
}()

func TestMSRRules(t *testing.T) {
	for _, r := range msrRules {
		t.Run(fmt.Sprintf("%#x", uint32(r.msr)), func(t *testing.T) {
			g := synictest.New(t, 2, func(c *synic.Config) { c.APIC = &fakeAPIC{} })
			v := g.VPs[1]
			check := func(want uint64) {
				t.Helper()
				got, ok := v.ReadMSR(r.msr)
				if ok == r.noRead {
					t.Fatalf("read: ok %v", ok)
				}
				if ok && got != want {
					t.Fatalf("read %#x, want %#x", got, want)
				}
			}
			check(r.reset)
			if r.noWrite {
				for _, val := range []uint64{0, 1, r.reset, ones} {
					if v.WriteMSR(r.msr, val) {
						t.Errorf("write of %#x to a read-only register", val)
					}
				}
				check(r.reset)
				return
			}
			for _, w := range r.writes {
				if v.WriteMSR(r.msr, w.val) == w.gp {
					t.Errorf("write of %#x: #GP %v, want %v", w.val, !w.gp, w.gp)
				}
				check(w.then)
			}
		})
	}
}

func TestMSRPrivileges(t *testing.T) {
	for _, r := range msrRules {
		for _, without := range []struct {
			name string
			skip bool
			edit func(*synic.Config)
		}{
			{"privilege", r.privilege == 0, func(c *synic.Config) { c.Privileges &^= r.privilege }},
			{"feature", r.feature == 0, func(c *synic.Config) { c.Features &^= r.feature }},
		} {
			if without.skip {
				continue
			}
			g := synictest.New(t, 1, func(c *synic.Config) { c.APIC = &fakeAPIC{}; without.edit(c) })
			if _, ok := g.VPs[0].ReadMSR(r.msr); ok {
				t.Errorf("read of %#x without its %s", uint32(r.msr), without.name)
			}
			for _, val := range []uint64{0, 1, 0x10000, r.reset} {
				if g.VPs[0].WriteMSR(r.msr, val) {
					t.Errorf("write of %#x without its %s", uint32(r.msr), without.name)
				}
			}
		}
	}
}

// Every number in the range that has no rule does not exist.
func TestMSRUnknown(t *testing.T) {
	known := map[hv.MSR]bool{}
	for _, r := range msrRules {
		known[r.msr] = true
	}
	g := synictest.New(t, 1, func(c *synic.Config) { c.APIC = &fakeAPIC{} })
	check := func(m hv.MSR) {
		if _, ok := g.VPs[0].ReadMSR(m); ok {
			t.Errorf("read of %#x", uint32(m))
		}
		if g.VPs[0].WriteMSR(m, 0) {
			t.Errorf("write of %#x", uint32(m))
		}
	}
	n := 0
	for m := hv.FirstMSR; m <= hv.LastMSR; m++ {
		if !known[m] {
			check(m)
			n++
		}
	}
	if n+len(msrRules) != 0x200 {
		t.Errorf("%d unknown and %d known registers", n, len(msrRules))
	}
	for _, m := range []hv.MSR{0, 0x10, 0x3FFFFFFF, 0x40000200, 0x40001080, 0xC0000080, math.MaxUint32} {
		check(m)
	}
}

func TestMSRFeaturesOff(t *testing.T) {
	g := synictest.New(t, 1, func(c *synic.Config) { c.Features = 0 })
	v := g.VPs[0]
	if v.WriteMSR(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerDirect, 0xED, 0))) {
		t.Error("direct mode without its feature")
	}
	v.Write(hv.MSRSINT(2), 0x400F3)
	if s := v.Read(hv.MSRSINT(2)); s != 0xF3 {
		t.Errorf("SINT with polling reads %#x without that feature", s)
	}
	v.Write(hv.MSRGuestOSID, 1)
	v.Write(hv.MSRHypercall, 0x5003)
	if r := v.Read(hv.MSRHypercall); r != 0x5001 {
		t.Errorf("HYPERCALL with the lock bit reads %#x without that feature", r)
	}
	v.Write(hv.MSRHypercall, 0x6001)
}

func TestMSRNoAPIC(t *testing.T) {
	g := synictest.New(t, 1, nil) // has none
	for _, m := range []hv.MSR{hv.MSREOI, hv.MSRICR, hv.MSRTPR} {
		if _, ok := g.VPs[0].ReadMSR(m); ok {
			t.Errorf("read of %#x", uint32(m))
		}
		if g.VPs[0].WriteMSR(m, 0) {
			t.Errorf("write of %#x", uint32(m))
		}
	}
	g.VPs[0].Write(hv.MSRVPAssistPage, 0x5001) // needs no APIC
}

func TestMSRHypercall(t *testing.T) {
	g := synictest.New(t, 1, nil)
	v := g.VPs[0]
	v.Write(hv.MSRHypercall, 0x5001)
	v.Write(hv.MSRGuestOSID, 1)
	if r := v.Read(hv.MSRHypercall); r != 0x5000 {
		t.Errorf("an enable from before GUEST_OS_ID became %#x", r)
	}
	v.Write(hv.MSRHypercall, 0x5001)
	// A page in the address space that is not RAM is enabled, only out of sight.
	v.Write(hv.MSRHypercall, 1<<40-4096|1)
	if r := v.Read(hv.MSRHypercall); r != 1<<40-4096|1 {
		t.Errorf("HYPERCALL %#x", r)
	}
	v.Write(hv.MSRHypercall, 0x7003)
	for _, val := range []uint64{0, 0x7001, 0x7003, 0x8003} {
		if v.WriteMSR(hv.MSRHypercall, val) {
			t.Errorf("locked register took %#x", val)
		}
	}
	// Even locked, the page goes with the OS id.
	v.Write(hv.MSRGuestOSID, 0)
	if r := v.Read(hv.MSRHypercall); r != 0x7002 {
		t.Errorf("HYPERCALL %#x after GUEST_OS_ID 0", r)
	}
	g.Partition.Reset()
	if r := v.Read(hv.MSRHypercall); r != 0 {
		t.Errorf("HYPERCALL %#x after reset", r)
	}
	v.Write(hv.MSRGuestOSID, 1)
	v.Write(hv.MSRHypercall, 0x5001)
}

func TestMSRReset(t *testing.T) {
	var resets []hv.VPIndex
	var invariant []bool
	var g *synictest.Guest
	g = synictest.New(t, 2, func(c *synic.Config) {
		c.OnReset = func(vp hv.VPIndex) {
			resets = append(resets, vp)
			g.Partition.Reset() // legal from here
		}
		c.OnTSCInvariant = func(on bool) { invariant = append(invariant, on) }
	})
	g.BringUp(2)
	v := g.VPs[1]
	v.Write(hv.MSRTSCInvariantControl, 1)
	v.Write(hv.MSRTSCInvariantControl, 1)
	v.Write(hv.MSRReset, 2)
	v.Write(hv.MSRReset, 0)
	if len(resets) != 0 {
		t.Error("reset without bit 0")
	}
	v.Write(hv.MSRReset, 1)
	if fmt.Sprint(resets) != "[1]" || fmt.Sprint(invariant) != "[true false]" {
		t.Errorf("resets %v, invariant %v", resets, invariant)
	}
	for _, r := range msrRules {
		if r.noRead || r.msr == hv.MSRVPIndex || r.msr == hv.MSRICR || r.msr == hv.MSRTPR {
			continue
		}
		if got := g.VPs[0].Read(r.msr); got != r.reset {
			t.Errorf("MSR %#x is %#x after reset, want %#x", uint32(r.msr), got, r.reset)
		}
	}
}

// INIT of one VP leaves the partition and the other VPs alone.
func TestVPReset(t *testing.T) {
	g := synictest.New(t, 2, nil)
	g.BringUp(2)
	g.VPs[1].Reset()
	for _, c := range []struct {
		vp   int
		msr  hv.MSR
		want uint64
	}{
		{0, hv.MSRSCONTROL, 1}, {1, hv.MSRSCONTROL, 0},
		{0, hv.MSRSINT(2), synictest.Vector}, {1, hv.MSRSINT(2), 0x10000},
		{0, hv.MSRSIMP, uint64(g.VPs[0].SIM()) | 1}, {1, hv.MSRSIMP, 0},
		{1, hv.MSRSIEFP, 0}, {1, hv.MSRGuestOSID, synictest.LinuxOSID},
	} {
		if got := g.VPs[c.vp].Read(c.msr); got != c.want {
			t.Errorf("VP %d MSR %#x is %#x, want %#x", c.vp, uint32(c.msr), got, c.want)
		}
	}
}

func TestMSRRuntimeAndIdle(t *testing.T) {
	var idled []hv.VPIndex
	g := synictest.New(t, 2, func(c *synic.Config) {
		c.Runtime = func(vp hv.VPIndex) uint64 { return 77 + uint64(vp) }
		c.Idle = func(vp hv.VPIndex) { idled = append(idled, vp) }
	})
	if r := g.VPs[1].Read(hv.MSRVPRuntime); r != 78 {
		t.Errorf("runtime %d", r)
	}
	g.VPs[1].Read(hv.MSRGuestIdle)
	if fmt.Sprint(idled) != "[1]" {
		t.Errorf("idled %v", idled)
	}
}

func TestMSRAPIC(t *testing.T) {
	apic := &fakeAPIC{}
	g := synictest.New(t, 1, func(c *synic.Config) { c.APIC = apic })
	v := g.VPs[0]
	g.BringUp(2)
	v.Write(hv.MSREOI, 0)
	v.Write(hv.MSRICR, 0x0100_0000_0000_40F3)
	v.Write(hv.MSRTPR, 0x20)
	if apic.eois != 1 || apic.icr != 0x0100_0000_0000_40F3 || apic.tpr != 0x20 {
		t.Errorf("APIC %+v", *apic)
	}
	// An EOI is a reason to look for messages again.
	port := g.Partition.OpenMessagePort(1, 2, nil)
	port.Post(0, hv.NewMessage(1, []byte{1}))
	port.Post(0, hv.NewMessage(1, []byte{2}))
	w, err := g.Memory.Word(v.SIM() + guest.GPA(hv.SlotOffset(2)))
	if err != nil {
		t.Fatal(err)
	}
	w.Store(0)
	v.Write(hv.MSREOI, 0)
	if m, ok := v.TakeMessage(2); !ok || m.Payload[0] != 2 {
		t.Errorf("after EOI: %v, %v", m.Bytes(), ok)
	}
}

func TestConfig(t *testing.T) {
	mem, err := guest.New(guest.Region{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	clock := synictest.NewClock(0)
	good := synic.Config{
		Memory: mem, VPs: 1, Interrupts: noInterrupts{}, Clock: clock, Alarms: clock.Maker,
		Privileges: synictest.AllPrivileges, Features: synictest.AllFeatures,
		TrapPort: 1, SignalPort: 2, Idle: func(hv.VPIndex) {},
	}
	h := synic.NewHypervisor()
	p, err := h.NewPartition(good)
	if err != nil {
		t.Fatal(err)
	}
	if h.Partition(p.ID()) != p || p.ID() == 0 || h.Partition(p.ID()+1) != nil {
		t.Errorf("partition id %d", p.ID())
	}
	p.Close()
	p.Close()
	if h.Partition(p.ID()) != nil {
		t.Error("a closed partition is still there")
	}
	for name, change := range map[string]func(*synic.Config){
		"no memory":        func(c *synic.Config) { c.Memory = nil },
		"no VP":            func(c *synic.Config) { c.VPs = 0 },
		"negative VPs":     func(c *synic.Config) { c.VPs = -1 },
		"65 VPs":           func(c *synic.Config) { c.VPs = synic.MaxVPs + 1 },
		"no interrupter":   func(c *synic.Config) { c.Interrupts = nil },
		"no clock":         func(c *synic.Config) { c.Clock = nil },
		"no alarms":        func(c *synic.Config) { c.Alarms = nil },
		"no idle":          func(c *synic.Config) { c.Idle = nil },
		"one port":         func(c *synic.Config) { c.SignalPort = c.TrapPort },
		"31 address bits":  func(c *synic.Config) { c.PhysBits = 31 },
		"53 address bits":  func(c *synic.Config) { c.PhysBits = 53 },
		"create partition": func(c *synic.Config) { c.Privileges |= hv.CreatePartitions },
		"CPU management":   func(c *synic.Config) { c.Privileges |= hv.CPUManagement },
		"XMM input":        func(c *synic.Config) { c.Features |= 1 << 4 },
		"failing alarm": func(c *synic.Config) {
			c.Alarms = func(hv.VPIndex, func()) (synic.Alarm, error) { return nil, fmt.Errorf("no timer") }
		},
	} {
		bad := good
		change(&bad)
		if p, err := h.NewPartition(bad); err == nil {
			p.Close()
			t.Errorf("%s: no error", name)
		}
	}
	good.Alarms, good.Privileges = nil, good.Privileges&^hv.AccessSyntheticTimers
	p, err = h.NewPartition(good)
	if err != nil {
		t.Fatalf("without timers: %v", err)
	}
	p.Reset()
	p.VP(0).Reset()
	p.Close()
}

type noInterrupts struct{}

func (noInterrupts) Interrupt(hv.VPIndex, uint8) error { return nil }

// After Close everything fails and nothing writes to RAM.
func TestClosed(t *testing.T) {
	g := synictest.New(t, 1, nil)
	g.BringUp(2)
	p, v := g.Partition, g.VPs[0]
	if err := p.ConnectMessage(9, refuse(hv.StatusSuccess)); err != nil {
		t.Fatal(err)
	}
	port := p.OpenMessagePort(1, 2, nil)
	v.Write(hv.MSRSTIMERConfig(0), uint64(hv.MakeTimerConfig(hv.TimerEnabled|hv.TimerAutoEnable, 0, 2)))
	v.Write(hv.MSRSTIMERCount(0), 5000)
	p.Close()
	p.Reset()
	v.Reset()
	g.Clock.Advance(10000)
	if st := port.Post(0, hv.NewMessage(1, nil)); st != hv.StatusInvalidPortID {
		t.Errorf("post: %v", st)
	}
	if st := p.OpenMessagePort(2, 2, nil).Post(0, hv.NewMessage(1, nil)); st != hv.StatusInvalidPortID {
		t.Errorf("post to a new port: %v", st)
	}
	if st := p.SignalEvent(0, 2, 1); st != hv.StatusInvalidPartitionState {
		t.Errorf("signal: %v", st)
	}
	if st := v.PostMessage(9, 1, nil); st != hv.StatusInvalidPartitionState {
		t.Errorf("hypercall: %v", st)
	}
	if _, ok := v.ReadMSR(hv.MSRVPIndex); ok || v.WriteMSR(hv.MSREOM, 0) {
		t.Error("MSR access")
	}
	if err := p.ConnectMessage(10, refuse(0)); err == nil {
		t.Error("connect")
	}
	if n, _ := v.Interrupts(); n != 0 {
		t.Errorf("%d interrupts", n)
	}
	if _, _, ok := g.PeekMessage(v.SIM(), 2); ok {
		t.Error("a message was delivered")
	}
}
