package bare

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/kvm"
)

// Where things lie in the megabyte of RAM. The page tables map the first GiB
// of addresses one to one, so everything past the RAM is MMIO.
const (
	pml4  = 0x1000
	pdpt  = 0x2000
	pd    = 0x3000
	gdt   = 0x4000
	idt   = 0x5000
	Stack = 0x7FF0  // top, growing down
	Code  = 0x8000  // where code goes and starts
	Data  = 0x40000 // free from here on
	Size  = 0x100000

	// tss and identity are the addresses that KVM wants for real mode on
	// Intel: below 4 GiB and above all that is mapped here.
	tss      = 0xFFFBD000
	identity = 0xFFFBC000
)

// Selectors of the GDT in long mode.
const (
	selCode = 0x08
	selData = 0x10
)

// Bits of control registers and of RFLAGS (AMD64 manual, volume 2).
const (
	cr0PE   = 1 << 0
	cr0MP   = 1 << 1
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	cr4FXSR = 1 << 9
	cr4XMM  = 1 << 10
	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsOne = 1 << 1 // always set
)

// Config says what a Guest has beyond a processor and RAM.
type Config struct {
	IRQChip  bool             // in-kernel PICs, IOAPIC and local APIC
	Deny     []kvm.MSRRange   // MSRs whose accesses exit
	RAMFlags uint32           // for SetMemoryRegion
	CPUID    []kvm.CPUIDEntry // nil: what KVM supports
	VCPUs    int              // 0 means 1
}

// A Guest is a VM of one processor. Its owner must LockThread the VCPU.
type Guest struct {
	VM    *kvm.VM
	VCPU  *kvm.VCPU   // the first one
	VCPUs []*kvm.VCPU // all
	Mem   *guest.Memory
}

// New builds a guest with empty RAM.
func New(sys *kvm.System, c Config) (g *Guest, err error) {
	g = &Guest{}
	defer func() {
		if err != nil {
			err = errors.Join(err, g.Close())
		}
	}()
	if g.Mem, err = guest.New(guest.Region{Size: Size}); err != nil {
		return g, err
	}
	if g.VM, err = sys.CreateVM(); err != nil {
		return g, err
	}
	if err = g.VM.SetTSSAddr(tss); err != nil {
		return g, err
	}
	if err = g.VM.SetIdentityMapAddr(identity); err != nil {
		return g, err
	}
	if err = g.VM.SetMemoryRegion(0, c.RAMFlags, 0, Size, g.Mem.HostAddr(0)); err != nil {
		return g, err
	}
	if c.IRQChip {
		if err = g.VM.CreateIRQChip(); err != nil {
			return g, err
		}
	}
	if len(c.Deny) > 0 {
		if err = g.VM.EnableCap(kvm.CapX86UserSpaceMSR, uint64(kvm.MSRReasonFilter)); err != nil {
			return g, err
		}
		if err = g.VM.SetMSRFilter(c.Deny...); err != nil {
			return g, err
		}
	}
	leaves := c.CPUID
	if leaves == nil {
		if leaves, err = sys.SupportedCPUID(); err != nil {
			return g, err
		}
	}
	for id := range max(c.VCPUs, 1) {
		v, err := g.VM.CreateVCPU(uint32(id))
		if err != nil {
			return g, err
		}
		g.VCPUs = append(g.VCPUs, v)
		if err := v.SetCPUID(leaves); err != nil {
			return g, err
		}
	}
	g.VCPU = g.VCPUs[0]
	return g, nil
}

// Close frees everything. The goroutines of the VCPUs must have ended.
func (g *Guest) Close() error {
	var errs []error
	for _, v := range g.VCPUs {
		errs = append(errs, v.Close())
	}
	if g.VM != nil {
		errs = append(errs, g.VM.Close())
	}
	if g.Mem != nil {
		errs = append(errs, g.Mem.Close())
	}
	return errors.Join(errs...)
}

// Real puts code at Code and the first processor there in real mode, all
// segments at 0. It may be called again after exits.
func (g *Guest) Real(code ...byte) error { return g.RealOn(g.VCPU, code...) }

// RealOn is Real for any processor.
func (g *Guest) RealOn(v *kvm.VCPU, code ...byte) error {
	if err := g.load(v, code); err != nil {
		return err
	}
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	s.CR0 &^= cr0PE | cr0PG
	s.CR4, s.EFER = 0, 0
	seg := kvm.Segment{Limit: 0xFFFF, Typ: 3, Present: 1, S: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = seg, seg, seg, seg, seg
	seg.Typ = 11
	s.CS = seg
	s.IDT = kvm.Descriptor{Limit: 0x3FF}
	if err := v.SetSregs(&s); err != nil {
		return err
	}
	return v.SetRegs(&kvm.Regs{RIP: Code, RSP: Stack, RFLAGS: rflagsOne})
}

// Long puts code at Code and the first processor there in 64-bit mode, ring
// 0, with SSE enabled and interrupts off.
func (g *Guest) Long(code ...byte) error { return g.LongOn(g.VCPU, code...) }

// LongOn is Long for any processor.
func (g *Guest) LongOn(v *kvm.VCPU, code ...byte) error {
	if err := g.load(v, code); err != nil {
		return err
	}
	if err := g.tables(); err != nil {
		return err
	}
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	s.CR0 = s.CR0&^(1<<2|1<<3|1<<29|1<<30) | cr0PE | cr0MP | cr0PG // no EM, TS, NW, CD
	s.CR3 = pml4
	s.CR4 = cr4PAE | cr4FXSR | cr4XMM
	s.EFER = eferLME | eferLMA
	data := kvm.Segment{Limit: 0xFFFFFFFF, Selector: selData, Typ: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.CS = kvm.Segment{Limit: 0xFFFFFFFF, Selector: selCode, Typ: 11, Present: 1, S: 1, L: 1, G: 1}
	s.TR = kvm.Segment{Limit: 0x67, Typ: 11, Present: 1}
	s.LDT = kvm.Segment{Typ: 2, Unusable: 1}
	s.GDT = kvm.Descriptor{Base: gdt, Limit: 3*8 - 1}
	s.IDT = kvm.Descriptor{Base: idt, Limit: 256*16 - 1}
	if err := v.SetSregs(&s); err != nil {
		return err
	}
	return v.SetRegs(&kvm.Regs{RIP: Code, RSP: Stack, RFLAGS: rflagsOne})
}

// Handler makes addr the handler of an interrupt vector in long mode.
func (g *Guest) Handler(vector uint8, addr uint64) error {
	var e [16]byte
	binary.LittleEndian.PutUint16(e[0:], uint16(addr))
	binary.LittleEndian.PutUint16(e[2:], selCode)
	e[5] = 0x8E // present, 64-bit interrupt gate
	binary.LittleEndian.PutUint16(e[6:], uint16(addr>>16))
	binary.LittleEndian.PutUint32(e[8:], uint32(addr>>32))
	return g.Mem.WriteAt(e[:], idt+guest.GPA(vector)*16)
}

// load ends what v was doing and puts code into RAM.
func (g *Guest) load(v *kvm.VCPU, code []byte) error {
	if err := v.CompleteExit(); err != nil {
		return err
	}
	if len(code) > Data-Code {
		return fmt.Errorf("bare guest: %d bytes of code", len(code))
	}
	return g.Mem.WriteAt(code, Code)
}

// tables writes the GDT and page tables of long mode.
func (g *Guest) tables() error {
	const presentWritable, large = 3, 1 << 7
	words := func(at guest.GPA, ws ...uint64) error {
		var b []byte
		for _, w := range ws {
			b = binary.LittleEndian.AppendUint64(b, w)
		}
		return g.Mem.WriteAt(b, at)
	}
	var dir [512]uint64
	for i := range dir {
		dir[i] = uint64(i)<<21 | large | presentWritable
	}
	return errors.Join(
		words(gdt, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF),
		words(pml4, pdpt|presentWritable),
		words(pdpt, pd|presentWritable),
		words(pd, dir[:]...),
	)
}
