package vmm

import (
	"encoding/binary"

	"github.com/hvpost/hvpost/kvm"
	"github.com/hvpost/hvpost/synic/hv"
)

// apic implements synic.APIC on KVM's local APICs: the EOI, ICR and TPR MSRs
// of Hyper-V. All of it runs on the VP's own goroutine. A guest in x2APIC mode
// reaches the registers through their MSRs; for one in xAPIC mode the register
// page is read, changed and written back.
type apic struct{ m *Machine }

// Offsets in the xAPIC register page; the x2APIC MSR is 0x800 + offset/16.
const (
	apicTPR     = 0x80
	apicISR     = 0x100
	apicICRLow  = 0x300
	apicICRHigh = 0x310

	msrX2APICTPR = 0x808
	msrX2APICEOI = 0x80B
	msrX2APICICR = 0x830

	apicBaseX2 = 1 << 10

	msiAddress = 0xFEE0_0000
)

func (a apic) vp(i hv.VPIndex) *vp { return a.m.vps[i] }

func (vp *vp) x2apic() bool { return vp.cpu.APICBase()&apicBaseX2 != 0 }

// changeLAPIC applies f to the register page. A host that refuses ends the
// machine: the guest did nothing wrong.
func (vp *vp) changeLAPIC(f func(regs []byte) bool) {
	var l kvm.LAPICState
	err := vp.cpu.GetLAPIC(&l)
	if err == nil && f(l.Regs[:]) {
		err = vp.cpu.SetLAPIC(&l)
	}
	if err != nil {
		vp.fault("local APIC: %v", err)
	}
}

// EOI ends the interrupt in service.
func (a apic) EOI(i hv.VPIndex) {
	vp := a.vp(i)
	if vp.x2apic() {
		if err := vp.cpu.SetMSR(msrX2APICEOI, 0); err != nil {
			vp.fault("EOI: %v", err)
		}
		return
	}
	vector := -1
	vp.changeLAPIC(func(regs []byte) bool {
		if vector = highestInService(regs); vector < 0 {
			return false
		}
		regs[apicISR+vector/32*16+vector%32/8] &^= 1 << (vector % 8)
		return true
	})
	if vector >= 0 {
		vp.ioapicEOI(uint8(vector))
	}
}

// highestInService returns the highest vector whose ISR bit is set, or -1.
func highestInService(regs []byte) int {
	for v := 255; v >= 16; v-- {
		if regs[apicISR+v/32*16+v%32/8]>>(v%8)&1 != 0 {
			return v
		}
	}
	return -1
}

// ioapicEOI does for level-triggered lines what the local APIC's broadcast
// does: the pins that sent the vector may send it again.
func (vp *vp) ioapicEOI(vector uint8) {
	// struct kvm_ioapic_state: base, ioregsel, id, irr, pad, then 24
	// redirection entries of 8 bytes.
	const entries, pins, remoteIRR, level = 24, 24, 1 << 14, 1 << 15
	chip := kvm.IRQChip{ChipID: kvm.ChipIOAPIC}
	if err := vp.m.vm.GetIRQChip(&chip); err != nil {
		vp.fault("IOAPIC: %v", err)
		return
	}
	changed := false
	for pin := range pins {
		e := chip.Chip[entries+8*pin:]
		low := binary.LittleEndian.Uint32(e)
		if uint8(low) == vector && low&(remoteIRR|level) == remoteIRR|level {
			binary.LittleEndian.PutUint32(e, low&^remoteIRR)
			changed = true
		}
	}
	if changed {
		if err := vp.m.vm.SetIRQChip(&chip); err != nil {
			vp.fault("IOAPIC: %v", err)
		}
	}
}

// ICR reads the interrupt command register.
func (a apic) ICR(i hv.VPIndex) uint64 {
	vp := a.vp(i)
	if vp.x2apic() {
		v, err := vp.cpu.MSR(msrX2APICICR)
		if err != nil {
			vp.fault("ICR: %v", err)
		}
		return v
	}
	var v uint64
	vp.changeLAPIC(func(regs []byte) bool {
		v = uint64(binary.LittleEndian.Uint32(regs[apicICRHigh:]))<<32 |
			uint64(binary.LittleEndian.Uint32(regs[apicICRLow:]))
		return false
	})
	return v
}

// SetICR sends an interprocessor interrupt.
func (a apic) SetICR(i hv.VPIndex, v uint64) bool {
	vp := a.vp(i)
	if vp.x2apic() {
		return vp.cpu.SetMSR(msrX2APICICR, v) == nil
	}
	const shorthand, self, all, others = 3 << 18, 1 << 18, 2 << 18, 3 << 18
	const logical, deliveryBits = 1 << 11, 0xC7FF // vector, mode, level, trigger
	vp.changeLAPIC(func(regs []byte) bool {
		binary.LittleEndian.PutUint32(regs[apicICRHigh:], uint32(v>>32))
		binary.LittleEndian.PutUint32(regs[apicICRLow:], uint32(v)&^(1<<12))
		return true
	})
	data := uint32(v) & deliveryBits &^ logical
	send := func(dest uint64, logicalMode bool) {
		addr := uint64(msiAddress) | dest<<12
		if logicalMode {
			addr |= 1 << 2
		}
		if _, err := a.m.vm.SignalMSI(addr, data); err != nil {
			vp.fault("IPI: %v", err)
		}
	}
	switch v & shorthand {
	case self:
		send(uint64(i), false)
	case all, others:
		for j := range a.m.vps {
			if v&shorthand == all || j != int(i) {
				send(uint64(j), false)
			}
		}
	default:
		send(v>>56, v&logical != 0)
	}
	return true
}

// TPR reads the task priority register.
func (a apic) TPR(i hv.VPIndex) uint8 {
	vp := a.vp(i)
	var v uint8
	vp.changeLAPIC(func(regs []byte) bool {
		v = regs[apicTPR]
		return false
	})
	return v
}

// SetTPR writes the task priority register.
func (a apic) SetTPR(i hv.VPIndex, tpr uint8) bool {
	vp := a.vp(i)
	if vp.x2apic() {
		return vp.cpu.SetMSR(msrX2APICTPR, uint64(tpr)) == nil
	}
	vp.changeLAPIC(func(regs []byte) bool {
		regs[apicTPR] = tpr
		return true
	})
	return true
}
