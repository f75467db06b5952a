package cpuid

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDefaultHyperVGolden spells the leaves out in the numbers of the TLFS,
// not in this package's names.
func TestDefaultHyperVGolden(t *testing.T) {
	h := DefaultHyperV(HyperVOptions{
		VPs: 4, PhysicalBits: 46,
		Version: HyperVVersion{Major: 10, Minor: 1, Build: 20348, ServicePack: 2, ServiceBranch: 3, ServiceNumber: 0x010203},
	})
	want := []Leaf{
		{Function: 0x40000000, EAX: 0x4000000A, EBX: 0x7263694D, ECX: 0x666F736F, EDX: 0x76482074},
		{Function: 0x40000001, EAX: 0x31237648},
		{Function: 0x40000002, EAX: 20348, EBX: 10<<16 | 1, ECX: 2, EDX: 0x03010203},
		{Function: 0x40000003, EAX: 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<5 | 1<<6 | 1<<7 | 1<<9 | 1<<11, EBX: 1<<4 | 1<<5, EDX: 1<<8 | 1<<10 | 1<<19},
		{Function: 0x40000004, EAX: 1<<5 | 1<<9, EBX: 0xFFFFFFFF, ECX: 46},
		{Function: 0x40000005, EAX: 4, EBX: 4},
		{Function: 0x40000006}, {Function: 0x40000007}, {Function: 0x40000008}, {Function: 0x40000009}, {Function: 0x4000000A},
	}
	if d := cmp.Diff(want, h.leaves()); d != "" {
		t.Error(d)
	}
}

func TestHyperVOptions(t *testing.T) {
	none := DefaultHyperV(HyperVOptions{VPs: 1})
	for name, tc := range map[string]struct {
		o          HyperVOptions
		privileges uint64
		features   uint32
		hints      uint32
	}{
		"none":          {HyperVOptions{}, 0, 0, 0},
		"invariant TSC": {HyperVOptions{InvariantTSC: true}, 1 << 15, 0, 0},
		"guest idle":    {HyperVOptions{GuestIdle: true}, 1 << 10, 1 << 5, 0},
		"flush":         {HyperVOptions{RemoteFlush: true}, 0, 0, 1<<2 | 1<<11},
		"IPI":           {HyperVOptions{ClusterIPI: true}, 0, 0, 1<<10 | 1<<11},
	} {
		tc.o.VPs = 1
		h := DefaultHyperV(tc.o)
		if got := h.Privileges ^ none.Privileges; got != tc.privileges {
			t.Errorf("%s: privileges differ by %#x, want %#x", name, got, tc.privileges)
		}
		if got := h.Features ^ none.Features; got != tc.features {
			t.Errorf("%s: features differ by %#x, want %#x", name, got, tc.features)
		}
		if got := h.Hints ^ none.Hints; got != tc.hints {
			t.Errorf("%s: hints differ by %#x, want %#x", name, got, tc.hints)
		}
	}
}

// TestNeverRoot: with CpuManagement and without Isolation Linux believes to be
// the root partition and has no VMBus; AccessPartitionId makes it call
// HvCallGetPartitionId and BUG if that fails.
func TestNeverRoot(t *testing.T) {
	h := DefaultHyperV(HyperVOptions{VPs: 1, InvariantTSC: true, GuestIdle: true, RemoteFlush: true, ClusterIPI: true})
	const never = uint64(1<<0|1<<1|1<<2|1<<3|1<<8|1<<12|1<<13|1<<22) << 32
	if h.Privileges&never != 0 {
		t.Errorf("privileges %#x hold %#x", h.Privileges, h.Privileges&never)
	}
}

func TestConstantBits(t *testing.T) {
	for _, tc := range []struct {
		name string
		got  uint64
		bit  int
	}{
		{"AccessVPRuntime", AccessVPRuntime, 0}, {"AccessReferenceCounter", AccessReferenceCounter, 1}, {"AccessSynIC", AccessSynIC, 2},
		{"AccessSyntheticTimers", AccessSyntheticTimers, 3}, {"AccessAPIC", AccessAPIC, 4}, {"AccessHypercall", AccessHypercall, 5},
		{"AccessVPIndex", AccessVPIndex, 6}, {"AccessReset", AccessReset, 7}, {"AccessStatistics", AccessStatistics, 8},
		{"AccessReferenceTSC", AccessReferenceTSC, 9}, {"AccessGuestIdle", AccessGuestIdle, 10}, {"AccessFrequency", AccessFrequency, 11},
		{"AccessDebug", AccessDebug, 12}, {"AccessReenlightenment", AccessReenlightenment, 13}, {"AccessTSCInvariantControl", AccessTSCInvariantControl, 15},
		{"CreatePartitions", CreatePartitions, 32}, {"AccessPartitionID", AccessPartitionID, 33}, {"AccessMemoryPool", AccessMemoryPool, 34},
		{"PostMessages", PostMessages, 36}, {"SignalEvents", SignalEvents, 37}, {"CreatePort", CreatePort, 38}, {"ConnectPort", ConnectPort, 39},
		{"AccessStats", AccessStats, 40}, {"Debugging", Debugging, 43}, {"CPUManagement", CPUManagement, 44},
		{"AccessVSM", AccessVSM, 48}, {"AccessVPRegisters", AccessVPRegisters, 49}, {"EnableExtendedHypercalls", EnableExtendedHypercalls, 52},
		{"StartVirtualProcessor", StartVirtualProcessor, 53}, {"IsolationPrivilege", IsolationPrivilege, 54},
		{"FeatureXMMInput", uint64(FeatureXMMInput), 4}, {"FeatureGuestIdle", uint64(FeatureGuestIdle), 5}, {"FeatureFrequencyMSRs", uint64(FeatureFrequencyMSRs), 8},
		{"FeatureCrashMSRs", uint64(FeatureCrashMSRs), 10}, {"FeatureDebugMSRs", uint64(FeatureDebugMSRs), 11}, {"FeatureExtendedGVARanges", uint64(FeatureExtendedGVARanges), 14},
		{"FeatureXMMOutput", uint64(FeatureXMMOutput), 15}, {"FeatureSINTPolling", uint64(FeatureSINTPolling), 17}, {"FeatureHypercallMSRLock", uint64(FeatureHypercallMSRLock), 18},
		{"FeatureDirectTimers", uint64(FeatureDirectTimers), 19},
		{"HintAddressSpaceSwitch", uint64(HintAddressSpaceSwitch), 0}, {"HintLocalFlush", uint64(HintLocalFlush), 1}, {"HintRemoteFlush", uint64(HintRemoteFlush), 2},
		{"HintAPICMSRs", uint64(HintAPICMSRs), 3}, {"HintResetMSR", uint64(HintResetMSR), 4}, {"HintRelaxedTiming", uint64(HintRelaxedTiming), 5},
		{"HintDeprecateAutoEOI", uint64(HintDeprecateAutoEOI), 9}, {"HintClusterIPI", uint64(HintClusterIPI), 10}, {"HintSparseSets", uint64(HintSparseSets), 11},
		{"HintNested", uint64(HintNested), 12},
	} {
		if tc.got != 1<<tc.bit {
			t.Errorf("%s = %#x, want bit %d", tc.name, tc.got, tc.bit)
		}
	}
}

// TestHyperVInTemplate: the leaves reach every processor, and KVM's own do not
// shine through.
func TestHyperVInTemplate(t *testing.T) {
	for _, host := range hosts {
		h := DefaultHyperV(HyperVOptions{VPs: 3, PhysicalBits: 48})
		tm := template(t, host, Options{VPs: 3, HyperV: &h})
		for vp := range 3 {
			leaves := tm.VP(vp)
			for _, want := range h.leaves() {
				if got := must(t, leaves, want.Function, 0); got != want {
					t.Errorf("%s, VP %d: %+v, want %+v", host, vp, got, want)
				}
			}
		}
	}
}
