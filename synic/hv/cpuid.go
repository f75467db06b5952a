package hv

// CPUID leaves of the hypervisor interface (TLFS "Feature and Interface
// Discovery").
const (
	LeafMax             = 0x40000000 // and the vendor signature
	LeafInterface       = 0x40000001
	LeafVersion         = 0x40000002
	LeafFeatures        = 0x40000003
	LeafRecommendations = 0x40000004
	LeafLimits          = 0x40000005
	LeafHardware        = 0x40000006

	// InterfaceSignature is leaf LeafInterface EAX: "Hv#1".
	InterfaceSignature = 0x31237648
)

// Vendor is the signature of leaf LeafMax in EBX, ECX, EDX. Guests compare it
// byte by byte.
const Vendor = "Microsoft Hv"

// Privileges is HV_PARTITION_PRIVILEGE_MASK: leaf LeafFeatures EAX in the low,
// EBX in the high half.
type Privileges uint64

// Partition privileges.
const (
	AccessVPRuntime       Privileges = 1 << 0
	AccessRefCounter      Privileges = 1 << 1
	AccessSynIC           Privileges = 1 << 2
	AccessSyntheticTimers Privileges = 1 << 3
	AccessAPIC            Privileges = 1 << 4 // EOI, ICR, TPR and the VP assist page
	AccessHypercall       Privileges = 1 << 5 // GUEST_OS_ID and HYPERCALL
	AccessVPIndex         Privileges = 1 << 6
	AccessReset           Privileges = 1 << 7
	AccessReferenceTSC    Privileges = 1 << 9
	AccessGuestIdle       Privileges = 1 << 10
	AccessFrequency       Privileges = 1 << 11
	AccessTSCInvariant    Privileges = 1 << 15

	CreatePartitions         Privileges = 1 << 32
	AccessPartitionID        Privileges = 1 << 33
	PostMessages             Privileges = 1 << 36
	SignalEvents             Privileges = 1 << 37
	CreatePort               Privileges = 1 << 38
	ConnectPort              Privileges = 1 << 39
	CPUManagement            Privileges = 1 << 44
	EnableExtendedHypercalls Privileges = 1 << 52
)

// Has reports whether all of want are held.
func (p Privileges) Has(want Privileges) bool { return p&want == want }

// EAX returns the low half, leaf LeafFeatures EAX.
func (p Privileges) EAX() uint32 { return uint32(p) }

// EBX returns the high half, leaf LeafFeatures EBX.
func (p Privileges) EBX() uint32 { return uint32(p >> 32) }

// Features: leaf LeafFeatures EDX.
const (
	FeatureGuestIdle     uint32 = 1 << 5
	FeatureFrequencyMSRs uint32 = 1 << 8
	FeatureCrashMSRs     uint32 = 1 << 10
	FeatureSINTPolling   uint32 = 1 << 17
	FeatureHypercallLock uint32 = 1 << 18
	FeatureDirectTimers  uint32 = 1 << 19
)

// Recommendations: leaf LeafRecommendations EAX. Each makes a guest use
// something.
const (
	RecommendRemoteFlush      uint32 = 1 << 2
	RecommendAPICMSRs         uint32 = 1 << 3
	RecommendResetMSR         uint32 = 1 << 4
	RecommendRelaxedTiming    uint32 = 1 << 5
	RecommendDeprecateAutoEOI uint32 = 1 << 9
	RecommendClusterIPI       uint32 = 1 << 10
	RecommendSparseVPSet      uint32 = 1 << 11
)
