package vmm

import (
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/firmware/boot"
	"github.com/hvpost/hvpost/firmware/cpuid"
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic"
	"github.com/hvpost/hvpost/synic/hv"
	"github.com/hvpost/hvpost/vmbus"
	"github.com/hvpost/hvpost/vmm/chipset"
)

// Addresses that KVM wants for itself on Intel hosts; the guest never sees
// them, and no RAM is there.
const (
	kvmIdentityMap = 0xFFFB_C000
	kvmTSS         = 0xFFFB_D000
)

// hypervMSRs is the range of synthetic MSRs whose accesses come to us.
const (
	hypervMSRBase  = 0x4000_0000
	hypervMSRCount = 0x200
)

// A Need is a capability with its reason.
type Need struct {
	Cap kvm.Cap
	Why string
}

// Needs are the KVM capabilities without which no machine is built, with what
// each is for; the doctor lists them.
var Needs = []Need{
	{Cap: kvm.CapIRQChip, Why: "in-kernel LAPIC and IOAPIC"},
	{Cap: kvm.CapX86UserSpaceMSR, Why: "synthetic MSRs exit to the monitor"},
	{Cap: kvm.CapX86MSRFilter, Why: "synthetic MSRs exit to the monitor"},
	{Cap: kvm.CapSignalMSI, Why: "interrupts from any thread"},
	{Cap: kvm.CapSyncRegs, Why: "hypercall arguments without extra calls"},
	{Cap: kvm.CapIOEventFD, Why: "signals without an exit"},
	{Cap: kvm.CapImmediateExit, Why: "stopping a processor without a race"},
}

// ErrCapability reports a KVM that lacks something in Needs.
var ErrCapability = errors.New("this KVM is too old or too small")

func (m *Machine) createVM() (err error) {
	if m.sys, err = kvm.Open(m.cfg.KVM); err != nil {
		return err
	}
	for _, n := range Needs {
		if m.sys.Check(n.Cap) == 0 {
			return fmt.Errorf("%w: %s has no %v, which is needed for %s", ErrCapability, m.cfg.KVM, n.Cap, n.Why)
		}
	}
	if m.vm, err = m.sys.CreateVM(); err != nil {
		return err
	}
	if err := m.vm.SetIdentityMapAddr(kvmIdentityMap); err != nil {
		return err
	}
	if err := m.vm.SetTSSAddr(kvmTSS); err != nil {
		return err
	}
	if err := m.vm.CreateIRQChip(); err != nil {
		return err
	}
	if err := m.vm.EnableCap(kvm.CapX86UserSpaceMSR, uint64(kvm.MSRReasonFilter)); err != nil {
		return err
	}
	return m.vm.SetMSRFilter(kvm.MSRRange{Base: hypervMSRBase, Count: hypervMSRCount, Deny: kvm.DenyRead | kvm.DenyWrite})
}

// createMemory maps RAM and the window and gives both to KVM.
func (m *Machine) createMemory() (err error) {
	regions, _, err := boot.Layout(m.cfg.Memory)
	if err != nil {
		return err
	}
	if m.mem, err = guest.New(regions...); err != nil {
		return err
	}
	if m.cfg.Window > 0 {
		if m.window, err = guest.New(guest.Region{Base: WindowBase, Size: m.cfg.Window}); err != nil {
			return err
		}
	}
	slot := uint32(0)
	for _, mem := range []*guest.Memory{m.mem, m.window} {
		if mem == nil {
			continue
		}
		for _, r := range mem.Regions() {
			if err := m.vm.SetMemoryRegion(slot, 0, uint64(r.Base), r.Size, mem.HostAddr(r.Base)); err != nil {
				return err
			}
			slot++
		}
	}
	return nil
}

// createVPs creates the processors in the order of their indices, which are
// also their APIC ids.
func (m *Machine) createVPs() error {
	supported, err := m.sys.SupportedCPUID()
	if err != nil {
		return err
	}
	for i := range m.cfg.VPs {
		cpu, err := m.vm.CreateVCPU(uint32(i))
		if err != nil {
			return err
		}
		if err := cpu.EnableSync(kvm.SyncRegs | kvm.SyncSregs); err != nil {
			return err
		}
		vp := &vp{m: m, index: hv.VPIndex(i), cpu: cpu}
		vp.autoEOI.vp = vp
		m.vps = append(m.vps, vp)
	}
	if m.clock, err = newClock(m.vps[0].cpu); err != nil {
		return err
	}
	host := make([]cpuid.Leaf, len(supported))
	for i, e := range supported {
		host[i] = cpuid.Leaf{Function: e.Function, Index: e.Index, Flags: e.Flags,
			EAX: e.Eax, EBX: e.Ebx, ECX: e.Ecx, EDX: e.Edx}
	}
	if m.cfg.HyperV == nil {
		m.cfg.HyperV = new(defaultHyperV(m.cfg.VPs, host))
	}
	template, err := cpuid.NewTemplate(host, cpuid.Options{
		VPs: m.cfg.VPs, HyperV: m.cfg.HyperV, TSCDeadline: m.sys.Check(kvm.CapTSCDeadlineTimer) != 0,
	})
	if err != nil {
		return err
	}
	for _, vp := range m.vps {
		leaves := template.VP(int(vp.index))
		entries := make([]kvm.CPUIDEntry, len(leaves))
		for i, l := range leaves {
			entries[i] = kvm.CPUIDEntry{Function: l.Function, Index: l.Index, Flags: l.Flags,
				Eax: l.EAX, Ebx: l.EBX, Ecx: l.ECX, Edx: l.EDX}
		}
		if err := vp.cpu.SetCPUID(entries); err != nil {
			return fmt.Errorf("VP %d: CPUID: %w", vp.index, err)
		}
	}
	return nil
}

// defaultHyperV is what CPUID shows unless the caller says otherwise: all
// that this machine serves.
func defaultHyperV(vps int, host []cpuid.Leaf) cpuid.HyperV {
	return cpuid.DefaultHyperV(cpuid.HyperVOptions{
		VPs:          vps,
		PhysicalBits: cpuid.PhysicalBits(host),
		InvariantTSC: cpuid.InvariantTSC(host),
		Version:      cpuid.HyperVVersion{Major: 10, Minor: 0, Build: 20348},
	})
}

func (m *Machine) createPartition() (err error) {
	m.doorbells = newDoorbells(m.vm)
	alarms, closeAlarms := synic.NewTimerFDAlarms(synic.MonotonicTime(m.clock))
	m.alarms = closeAlarms
	m.hypervisor = synic.NewHypervisor()
	m.partition, err = m.hypervisor.NewPartition(synic.Config{
		Memory:     m.mem,
		VPs:        m.cfg.VPs,
		Interrupts: m,
		Clock:      m.clock,
		Alarms:     alarms,
		Doorbell:   m.doorbells,
		PhysBits:   int(m.cfg.HyperV.PhysicalBits),
		APIC:       apic{m},
		Privileges: hv.Privileges(m.cfg.HyperV.Privileges),
		Features:   m.cfg.HyperV.Features,
		TrapPort:   trapPort,
		SignalPort: signalPort,
		OnReset: func(vp hv.VPIndex) {
			m.stop(Outcome{Cause: CauseReset, VP: vp, Detail: "Hyper-V reset MSR"})
		},
		OnCrash: func(r synic.CrashReport) {
			m.stop(Outcome{Cause: CauseCrash, VP: r.VP, Crash: &r, Detail: "Hyper-V crash MSRs"})
		},
		Logf: m.logf,
	})
	if err != nil {
		return err
	}
	for _, vp := range m.vps {
		vp.synic = m.partition.VP(vp.index)
	}
	return nil
}

func (m *Machine) createChipset() error {
	line := func(gsi uint32) chipset.IRQ {
		return func(level bool) {
			if err := m.vm.IRQLine(gsi, level); err != nil {
				m.stop(Outcome{Cause: CauseFault, Detail: fmt.Sprintf("interrupt line %d: %v", gsi, err)})
			}
		}
	}
	console := func(byte) {}
	if m.cfg.Console != nil {
		m.console = chipset.NewOutput(m.cfg.Console)
		console = m.console.Byte
	}
	m.com1 = chipset.NewUART(line(com1IRQ), console)
	m.pm = chipset.NewPM(line(sciIRQ),
		func() { m.stop(Outcome{Cause: CausePowerOff, Detail: "ACPI S5"}) },
		func() { m.stop(Outcome{Cause: CauseReset, Detail: "ACPI reset register"}) })
	devices := []portRange{
		{com1Port, 8, m.com1},
		{rtcPort, 2, chipset.NewRTC()},
		{pmPort, chipset.PMSize, m.pm},
		{kbdPort, 1, chipset.KeyboardReset{Reset: func() {
			m.stop(Outcome{Cause: CauseReset, Detail: "keyboard controller"})
		}}},
	}
	if m.cfg.Window > 0 {
		sink := m.cfg.Line
		if sink == nil {
			sink = func(byte) {}
		}
		m.com2 = chipset.NewUART(line(com2IRQ), sink)
		devices = append(devices, portRange{com2Port, 8, m.com2})
	}
	if m.cfg.ExitPort != 0 {
		devices = append(devices, portRange{m.cfg.ExitPort, 4, chipset.ExitPort{Exit: func(v uint32) {
			m.stop(Outcome{Cause: CauseExitPort, Value: v})
		}}})
	}
	for _, d := range devices {
		if err := m.ports.add(d.base, d.size, d.dev); err != nil {
			return err
		}
	}
	return nil
}

func (m *Machine) createBus() (err error) {
	if m.cfg.NoVMBus {
		return nil
	}
	m.bus, err = vmbus.NewServer(vmbus.Config{
		Host:       vmbus.PartitionHost(m.partition),
		Memory:     m.mem,
		VPs:        m.cfg.VPs,
		MaxVersion: m.cfg.VMBusMaxVersion,
		Logf:       m.logf,
	})
	if err != nil {
		return err
	}
	for _, d := range m.cfg.Devices {
		if err := m.bus.Offer(d); err != nil {
			return err
		}
	}
	return nil
}

// load writes the firmware tables, calls the loader, and sets VP 0 up.
func (m *Machine) load() error {
	high := boot.HighRAMBase
	if rs := m.mem.Regions(); rs[len(rs)-1].End() > high {
		high = rs[len(rs)-1].End()
	}
	// The high MMIO range starts at the next GiB after RAM.
	fw, err := m.firmware((high + 1<<30 - 1) &^ (1<<30 - 1))
	if err != nil {
		return err
	}
	st, err := m.cfg.Load(m.mem, fw)
	if err != nil {
		return err
	}
	for _, vp := range m.vps {
		// What firmware would have set up on every processor.
		if err := vp.cpu.SetMSR(msrMTRRDefType, st.MTRRDefType); err != nil {
			return fmt.Errorf("VP %d: memory types: %w", vp.index, err)
		}
	}
	if err := m.vps[0].apply(st); err != nil {
		return fmt.Errorf("VP 0: initial state: %w", err)
	}
	return nil
}

// msrMTRRDefType is IA32_MTRR_DEF_TYPE.
const msrMTRRDefType = 0x2FF
