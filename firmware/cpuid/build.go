package cpuid

import (
	"errors"
	"fmt"
	"math/bits"
)

// MaxVPs bounds the processors of one machine. The core counts of AMD leaves
// 0x80000008 and 0x8000001E have eight bits and stop at 256; guests with more
// count cores by leaf 0xB, whose fields would allow more than this.
const MaxVPs = 1024

// Options choose what the guest sees beyond what KVM supports.
type Options struct {
	VPs int // virtual processors, 1 to MaxVPs

	// HyperV, when set, adds the Hyper-V leaves. Without it the guest sees a
	// machine without a hypervisor interface, but with the hypervisor bit.
	HyperV *HyperV

	// TSCDeadline says that the in-kernel local APIC has the TSC deadline
	// timer. KVM reports it as a capability, and only newer kernels in the
	// supported list as well.
	TSCDeadline bool

	Nested bool // keep VMX or SVM
	PMU    bool // keep the performance counters
}

// A Template is the part of CPUID that all processors of a machine share.
type Template struct {
	leaves []Leaf
	vps    int
	shift  uint32 // bits of an APIC id: the core number
	vendor vendor
}

// Bits that are changed, by leaf.
const (
	// Leaf 1 ECX.
	ecxMONITOR     = 1 << 3
	ecxVMX         = 1 << 5
	ecxSMX         = 1 << 6
	ecxPDCM        = 1 << 15
	ecxTSCDeadline = 1 << 24
	ecxOSXSAVE     = 1 << 27
	ecxHypervisor  = 1 << 31
	// Leaf 1 EDX.
	edxDS   = 1 << 21
	edxACPI = 1 << 22 // thermal monitor MSRs
	edxHTT  = 1 << 28
	edxTM   = 1 << 29
	// Leaf 6 EAX.
	eaxARAT = 1 << 2
	// Leaf 7.
	ebxSGX     = 1 << 2
	ebxRDTM    = 1 << 12
	ebxRDTA    = 1 << 15
	ebxPT      = 1 << 25
	ecxOSPKE   = 1 << 4
	ecxKL      = 1 << 23
	ecxSGXLC   = 1 << 30
	edxHybrid  = 1 << 15
	edxPCONFIG = 1 << 18
	edxArchLBR = 1 << 19
	// Leaf 0x80000001 ECX.
	ecxCmpLegacy = 1 << 1
	ecxSVM       = 1 << 2
	ecxIBS       = 1 << 10
	ecxSKINIT    = 1 << 12
	ecxNodeID    = 1 << 19
	ecxTopoExt   = 1 << 22
	ecxPerfCore  = 1 << 23
	ecxPerfNB    = 1 << 24
	ecxPerfLLC   = 1 << 28
	ecxMONITORX  = 1 << 29
	// Leaf 0x80000007 EDX.
	edxInvariantTSC = 1 << 8
)

// NewTemplate derives a machine's CPUID from the leaves that KVM supports
// (KVM_GET_SUPPORTED_CPUID).
func NewTemplate(supported []Leaf, o Options) (*Template, error) {
	if o.VPs < 1 || o.VPs > MaxVPs {
		return nil, fmt.Errorf("cpuid: %d virtual processors: must be 1 to %d", o.VPs, MaxVPs)
	}
	first := Find(supported, leafMax, 0)
	features := Find(supported, leafFeatures, 0)
	if first == nil || features == nil {
		return nil, errors.New("cpuid: KVM's list of supported leaves lacks leaf 0 or 1")
	}
	if features.EDX&(1<<9) == 0 {
		return nil, errors.New("cpuid: KVM does not support a local APIC on this host")
	}
	t := &Template{
		vps:    o.VPs,
		shift:  uint32(bits.Len(uint(o.VPs - 1))),
		vendor: vendorOf(*first),
	}
	for _, l := range supported {
		if !allowed[l.Function] {
			continue
		}
		if keep := t.edit(&l, o); keep {
			t.leaves = append(t.leaves, l)
		}
	}
	if l := Find(t.leaves, leafExtFeatures1, 0); l != nil && Find(t.leaves, leafAMDTopology, 0) == nil {
		l.ECX &^= ecxTopoExt // it promises that leaf
	}
	t.addTopology()
	t.setMaxima()
	if o.HyperV != nil {
		t.leaves = append(t.leaves, o.HyperV.leaves()...)
	} else {
		// A leaf that is absent would on Intel read as the highest basic one.
		t.leaves = append(t.leaves, Leaf{Function: leafHypervisor, EAX: leafHypervisor})
	}
	sortLeaves(t.leaves)
	return t, nil
}

// APICID returns the local APIC id of a virtual processor: ids are dense, as
// there is one socket and one thread to a core.
func (t *Template) APICID(vp int) uint32 {
	if vp < 0 || vp >= t.vps {
		panic(fmt.Sprintf("cpuid: VP %d of %d", vp, t.vps))
	}
	return uint32(vp)
}

// VP returns the leaves of virtual processor vp, in a slice of its own.
func (t *Template) VP(vp int) []Leaf {
	id := t.APICID(vp)
	leaves := append([]Leaf(nil), t.leaves...)
	for i := range leaves {
		l := &leaves[i]
		switch l.Function {
		case leafFeatures:
			l.EBX = l.EBX&0x00FFFFFF | id<<24
		case leafTopology, leafTopologyV2:
			l.EDX = id
		case leafAMDTopology:
			l.EAX = id
			l.EBX = id & 0xFF // core id; one thread to a core
		}
	}
	return leaves
}

// edit adapts one allowed leaf and reports whether to keep it.
func (t *Template) edit(l *Leaf, o Options) bool {
	switch l.Function {
	case leafFeatures:
		l.ECX &^= ecxMONITOR | ecxSMX | ecxOSXSAVE // KVM itself follows CR4 with OSXSAVE
		l.ECX |= ecxHypervisor
		if o.TSCDeadline {
			l.ECX |= ecxTSCDeadline
		}
		if !o.Nested {
			l.ECX &^= ecxVMX
		}
		l.EDX &^= edxACPI | edxTM | edxHTT
		if !o.PMU {
			l.ECX &^= ecxPDCM
			l.EDX &^= edxDS
		}
		l.EBX &= 0x0000FFFF // brand, CLFLUSH line; the APIC id is set per VP
		if t.vps > 1 {
			l.EDX |= edxHTT
			l.EBX |= min(t.siblings(), 255) << 16
		} else {
			l.EBX |= 1 << 16
		}
	case leafIntelCache:
		t.editIntelCache(l)
	case leafPower:
		*l = Leaf{Function: l.Function, EAX: l.EAX & eaxARAT}
	case leafExtFeatures:
		if l.Index == 0 {
			l.EBX &^= ebxSGX | ebxRDTM | ebxRDTA | ebxPT
			l.ECX &^= ecxSGXLC | ecxKL | ecxOSPKE
			l.EDX &^= edxHybrid | edxPCONFIG
			if !o.PMU {
				l.EDX &^= edxArchLBR
			}
		}
	case leafPMU, leafAMDPerf:
		return o.PMU
	case leafExtFeatures1:
		l.ECX &^= ecxIBS | ecxSKINIT | ecxNodeID | ecxMONITORX | ecxCmpLegacy
		if !o.Nested {
			l.ECX &^= ecxSVM
		}
		if !o.PMU {
			l.ECX &^= ecxPerfCore | ecxPerfNB | ecxPerfLLC
		}
		if t.vendor == amd && t.vps > 1 {
			l.ECX |= ecxCmpLegacy // logical processors are cores, not threads
		}
	case leafExtPower:
		l.EAX, l.EBX, l.ECX = 0, 0, 0
		l.EDX &= edxInvariantTSC
	case leafExtSizes:
		if t.vendor == amd {
			l.ECX = t.shift<<12 | min(uint32(t.vps), 256) - 1
		} else {
			l.ECX = 0
		}
	case leafSVM:
		return o.Nested
	case leafAMDCache:
		t.editAMDCache(l)
	case leafAMDTopology:
		// One node; EAX and EBX are set per VP.
		*l = Leaf{Function: l.Function, Flags: l.Flags, Index: l.Index}
	}
	return true
}
