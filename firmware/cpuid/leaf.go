package cpuid

import (
	"cmp"
	"slices"
)

// FlagIndexed marks a leaf whose Index matters
// (KVM_CPUID_FLAG_SIGNIFCANT_INDEX).
const FlagIndexed = 1

// A Leaf is one CPUID result, in the shape of struct kvm_cpuid_entry2.
type Leaf struct {
	Function, Index    uint32
	Flags              uint32
	EAX, EBX, ECX, EDX uint32
}

// Find returns the leaf for a function and index, or nil. A leaf without
// FlagIndexed answers for every index. The result points into leaves.
func Find(leaves []Leaf, function, index uint32) *Leaf {
	for i := range leaves {
		l := &leaves[i]
		if l.Function == function && (l.Flags&FlagIndexed == 0 || l.Index == index) {
			return l
		}
	}
	return nil
}

func sortLeaves(leaves []Leaf) {
	slices.SortFunc(leaves, func(a, b Leaf) int {
		return cmp.Or(cmp.Compare(a.Function, b.Function), cmp.Compare(a.Index, b.Index))
	})
}

// vendor is what leaf 0 names.
type vendor int

const (
	otherVendor vendor = iota
	intel
	amd // and Hygon, which numbers its leaves alike
)

func vendorOf(leaf0 Leaf) vendor {
	var b [12]byte
	for i, v := range []uint32{leaf0.EBX, leaf0.EDX, leaf0.ECX} {
		b[4*i], b[4*i+1], b[4*i+2], b[4*i+3] = byte(v), byte(v>>8), byte(v>>16), byte(v>>24)
	}
	switch string(b[:]) {
	case "GenuineIntel":
		return intel
	case "AuthenticAMD", "HygonGenuine":
		return amd
	}
	return otherVendor
}

// Leaf numbers used below.
const (
	leafMax          = 0
	leafFeatures     = 1
	leafIntelCache   = 4
	leafMWAIT        = 5
	leafPower        = 6
	leafExtFeatures  = 7
	leafPMU          = 0xA
	leafTopology     = 0xB
	leafXSAVE        = 0xD
	leafTopologyV2   = 0x1F
	leafHypervisor   = 0x40000000
	leafExtMax       = 0x80000000
	leafExtFeatures1 = 0x80000001
	leafExtPower     = 0x80000007
	leafExtSizes     = 0x80000008
	leafSVM          = 0x8000000A
	leafAMDCache     = 0x8000001D
	leafAMDTopology  = 0x8000001E
	leafAMDPerf      = 0x80000022
)

// allowed lists the functions that are passed on. Left out, apart from the
// hypervisor's own: serial number (3), cache access (9), RDT (0xF, 0x10), SGX
// (0x12), processor trace (0x14), the host's clock frequencies (0x15, 0x16:
// the guest's come from the Hyper-V MSRs), SoC vendor (0x17), TLB details
// (0x18), key locker (0x19), hybrid types (0x1A), PCONFIG (0x1B), LBR (0x1C)
// and SEV (0x8000001F).
var allowed = map[uint32]bool{
	leafMax: true, leafFeatures: true, 2: true, leafIntelCache: true, leafPower: true, leafExtFeatures: true,
	leafPMU: true, leafXSAVE: true, 0x1D: true, 0x1E: true, 0x24: true,
	leafExtMax: true, leafExtFeatures1: true, 0x80000002: true, 0x80000003: true, 0x80000004: true,
	0x80000005: true, 0x80000006: true, leafExtPower: true, leafExtSizes: true, leafSVM: true,
	0x80000019: true, 0x8000001A: true, leafAMDCache: true, leafAMDTopology: true, 0x80000021: true, leafAMDPerf: true,
}
