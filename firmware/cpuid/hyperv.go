package cpuid

// Partition privileges, HV_PARTITION_PRIVILEGE_MASK: leaf 0x40000003 EAX holds
// bits 31:0, EBX bits 63:32.
const (
	AccessVPRuntime           uint64 = 1 << 0
	AccessReferenceCounter    uint64 = 1 << 1
	AccessSynIC               uint64 = 1 << 2
	AccessSyntheticTimers     uint64 = 1 << 3
	AccessAPIC                uint64 = 1 << 4 // EOI, ICR, TPR and the VP assist page
	AccessHypercall           uint64 = 1 << 5
	AccessVPIndex             uint64 = 1 << 6
	AccessReset               uint64 = 1 << 7
	AccessStatistics          uint64 = 1 << 8
	AccessReferenceTSC        uint64 = 1 << 9
	AccessGuestIdle           uint64 = 1 << 10
	AccessFrequency           uint64 = 1 << 11
	AccessDebug               uint64 = 1 << 12
	AccessReenlightenment     uint64 = 1 << 13
	AccessTSCInvariantControl uint64 = 1 << 15
	CreatePartitions          uint64 = 1 << (32 + 0)
	AccessPartitionID         uint64 = 1 << (32 + 1)
	AccessMemoryPool          uint64 = 1 << (32 + 2)
	PostMessages              uint64 = 1 << (32 + 4)
	SignalEvents              uint64 = 1 << (32 + 5)
	CreatePort                uint64 = 1 << (32 + 6)
	ConnectPort               uint64 = 1 << (32 + 7)
	AccessStats               uint64 = 1 << (32 + 8)
	Debugging                 uint64 = 1 << (32 + 11)
	CPUManagement             uint64 = 1 << (32 + 12)
	AccessVSM                 uint64 = 1 << (32 + 16)
	AccessVPRegisters         uint64 = 1 << (32 + 17)
	EnableExtendedHypercalls  uint64 = 1 << (32 + 20)
	StartVirtualProcessor     uint64 = 1 << (32 + 21)
	IsolationPrivilege        uint64 = 1 << (32 + 22)
	minimalPrivileges                = AccessReferenceCounter | AccessSynIC | AccessSyntheticTimers | AccessAPIC | AccessHypercall | AccessVPIndex | AccessReset | AccessReferenceTSC | AccessFrequency | PostMessages | SignalEvents
)

// Features, leaf 0x40000003 EDX.
const (
	FeatureXMMInput          uint32 = 1 << 4
	FeatureGuestIdle         uint32 = 1 << 5
	FeatureFrequencyMSRs     uint32 = 1 << 8
	FeatureCrashMSRs         uint32 = 1 << 10
	FeatureDebugMSRs         uint32 = 1 << 11
	FeatureExtendedGVARanges uint32 = 1 << 14
	FeatureXMMOutput         uint32 = 1 << 15
	FeatureSINTPolling       uint32 = 1 << 17
	FeatureHypercallMSRLock  uint32 = 1 << 18
	FeatureDirectTimers      uint32 = 1 << 19
)

// Hints, leaf 0x40000004 EAX: each makes the guest use something.
const (
	HintAddressSpaceSwitch uint32 = 1 << 0
	HintLocalFlush         uint32 = 1 << 1
	HintRemoteFlush        uint32 = 1 << 2
	HintAPICMSRs           uint32 = 1 << 3
	HintResetMSR           uint32 = 1 << 4
	HintRelaxedTiming      uint32 = 1 << 5
	HintDeprecateAutoEOI   uint32 = 1 << 9
	HintClusterIPI         uint32 = 1 << 10
	HintSparseSets         uint32 = 1 << 11 // the Ex variants of calls
	HintNested             uint32 = 1 << 12
)

// NeverNotify as SpinRetries keeps guests from HvCallNotifyLongSpinWait.
const NeverNotify = 0xFFFFFFFF

// A HyperVVersion is leaf 0x40000002.
type HyperVVersion struct {
	Major, Minor  uint16
	Build         uint32
	ServicePack   uint32
	ServiceBranch uint8
	ServiceNumber uint32 // 24 bits
}

// A HyperV is what the leaves from 0x40000000 on say.
type HyperV struct {
	Privileges  uint64
	Features    uint32
	Hints       uint32
	PowerMisc   uint32 // leaf 3 ECX
	SpinRetries uint32 // before HvCallNotifyLongSpinWait

	PhysicalBits uint8 // implemented physical address bits
	MaxVPs       uint32
	MaxLPs       uint32
	Hardware     uint32 // leaf 6 EAX, hardware features in use

	NestedPrivileges uint32 // leaf 9 EAX
	NestedFeatures   uint32 // leaf 0xA EAX

	Version HyperVVersion
}

// HyperVOptions choose among what DefaultHyperV may offer.
type HyperVOptions struct {
	VPs          int
	PhysicalBits uint8
	InvariantTSC bool // the host's TSC is invariant, and so the guest's
	RemoteFlush  bool // HvCallFlushVirtualAddress* are served
	ClusterIPI   bool // HvCallSendSyntheticClusterIpi* are served
	GuestIdle    bool // reading HV_X64_MSR_GUEST_IDLE halts the processor
	Version      HyperVVersion
}

// DefaultHyperV returns the least that makes Linux and Windows guests run
// well. Hint 3 stays clear: an in-kernel local APIC is faster than its MSRs
// in userspace. A guest must never see CpuManagement without Isolation, for
// it would believe to be the root partition, nor AccessPartitionId, which
// makes Linux issue a call that must not fail.
func DefaultHyperV(o HyperVOptions) HyperV {
	h := HyperV{
		Privileges:   minimalPrivileges,
		Features:     FeatureFrequencyMSRs | FeatureCrashMSRs | FeatureDirectTimers,
		Hints:        HintRelaxedTiming | HintDeprecateAutoEOI,
		SpinRetries:  NeverNotify,
		PhysicalBits: o.PhysicalBits,
		MaxVPs:       uint32(o.VPs),
		MaxLPs:       uint32(o.VPs),
		Version:      o.Version,
	}
	if o.InvariantTSC {
		h.Privileges |= AccessTSCInvariantControl
	}
	if o.GuestIdle {
		h.Privileges |= AccessGuestIdle
		h.Features |= FeatureGuestIdle
	}
	if o.RemoteFlush {
		h.Hints |= HintRemoteFlush | HintSparseSets
	}
	if o.ClusterIPI {
		h.Hints |= HintClusterIPI | HintSparseSets
	}
	return h
}

// leaves returns leaves 0x40000000 to 0x4000000A.
func (h *HyperV) leaves() []Leaf {
	v := h.Version
	return []Leaf{
		{Function: 0x40000000, EAX: 0x4000000A, EBX: 0x7263694D, ECX: 0x666F736F, EDX: 0x76482074}, // "Microsoft Hv"
		{Function: 0x40000001, EAX: 0x31237648},                                                    // "Hv#1"
		{
			Function: 0x40000002, EAX: v.Build, EBX: uint32(v.Major)<<16 | uint32(v.Minor),
			ECX: v.ServicePack, EDX: uint32(v.ServiceBranch)<<24 | v.ServiceNumber&0xFFFFFF,
		},
		{Function: 0x40000003, EAX: uint32(h.Privileges), EBX: uint32(h.Privileges >> 32), ECX: h.PowerMisc, EDX: h.Features},
		{Function: 0x40000004, EAX: h.Hints, EBX: h.SpinRetries, ECX: uint32(h.PhysicalBits & 0x7F)},
		{Function: 0x40000005, EAX: h.MaxVPs, EBX: h.MaxLPs},
		{Function: 0x40000006, EAX: h.Hardware},
		{Function: 0x40000007},
		{Function: 0x40000008},
		{Function: 0x40000009, EAX: h.NestedPrivileges},
		{Function: 0x4000000A, EAX: h.NestedFeatures},
	}
}

// InvariantTSC reports whether the supported list says that the TSC is
// invariant.
func InvariantTSC(supported []Leaf) bool {
	l := Find(supported, leafExtPower, 0)
	return l != nil && l.EDX&edxInvariantTSC != 0
}

// PhysicalBits returns the guest's physical address width that the supported
// list gives, or 36 if it gives none.
func PhysicalBits(supported []Leaf) uint8 {
	l := Find(supported, leafExtSizes, 0)
	if l == nil || l.EAX&0xFF == 0 {
		return 36 // SDM, CPUID leaf 0x80000008: PAE without the leaf
	}
	return uint8(l.EAX)
}
