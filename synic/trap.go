package synic

import (
	"github.com/hvpost/hvpost/guest"
	"github.com/hvpost/hvpost/synic/hv"
)

// Registers are those of a VP that a hypercall needs.
type Registers struct {
	RAX, RBX, RCX, RDX, RSI, RDI, R8 uint64
	RIP                              uint64
}

// An Environment is the state of a VP that decides whether and how it may make
// a hypercall.
type Environment struct {
	CPL       uint8
	Protected bool // CR0.PE
	VM86      bool // RFLAGS.VM
	Long      bool // EFER.LMA and CS.L: a 64-bit caller
	CSBase    uint64

	// InPage: the OUT is in the enabled hypercall page; the machine finds out
	// with InHypercallPage and the VP's page tables.
	InPage bool
}

// Trap performs the hypercall of an OUT to TrapPort or SignalPort, an exit
// with r as the registers, and changes r to what the guest goes on with: the
// result, and RIP at the RET. The registers that changed are RAX and RIP, and
// RDX for a 32-bit caller.
//
// False means that the environment is not legal (TLFS "Legal Hypercall
// Environments"): r is unchanged, and the guest must get #UD at the OUT.
func (p *Partition) Trap(vp hv.VPIndex, port uint8, env Environment, r *Registers) bool {
	if env.CPL != 0 || !env.Protected || env.VM86 || !env.InPage {
		return false
	}
	// The offset in the page says where the VP is: the page is page-aligned
	// wherever the guest maps it.
	off := (r.RIP + env.CSBase) % guest.PageSize
	var done uint64
	switch {
	case port == p.cfg.TrapPort && (off == TrapOut || off == TrapOut+2):
		done = TrapDone
	case port == p.cfg.SignalPort && (off == SignalOut || off == SignalOut+2):
		done = SignalDone
	default:
		return false // an OUT by a jump into the middle of an instruction
	}
	if env.Long {
		r.RAX = uint64(p.Hypercall(vp, hv.Input(r.RCX), r.RDX, r.R8))
	} else {
		res := p.Hypercall(vp, hv.Input(pair(r.RDX, r.RAX)), pair(r.RBX, r.RCX), pair(r.RDI, r.RSI))
		r.RDX, r.RAX = uint64(res>>32), uint64(uint32(res))
	}
	r.RIP += done - off
	return true
}

// pair joins two 32-bit registers; what lies above their 32 bits is not the
// 32-bit caller's.
func pair(high, low uint64) uint64 { return high<<32 | uint64(uint32(low)) }
