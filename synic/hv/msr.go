package hv

import "github.com/hvpost/hvpost/guest"

// Synthetic MSRs (TLFS appendix "Synthetic MSRs"). P after a name means that
// the register belongs to the partition; the others exist once per VP.
const (
	MSRGuestOSID           MSR = 0x40000000 // P
	MSRHypercall           MSR = 0x40000001 // P
	MSRVPIndex             MSR = 0x40000002
	MSRReset               MSR = 0x40000003 // P
	MSRVPRuntime           MSR = 0x40000010
	MSRTimeRefCount        MSR = 0x40000020 // P
	MSRReferenceTSC        MSR = 0x40000021 // P
	MSRTSCFrequency        MSR = 0x40000022 // P
	MSRAPICFrequency       MSR = 0x40000023 // P
	MSREOI                 MSR = 0x40000070
	MSRICR                 MSR = 0x40000071
	MSRTPR                 MSR = 0x40000072
	MSRVPAssistPage        MSR = 0x40000073
	MSRSCONTROL            MSR = 0x40000080
	MSRSVERSION            MSR = 0x40000081
	MSRSIEFP               MSR = 0x40000082
	MSRSIMP                MSR = 0x40000083
	MSREOM                 MSR = 0x40000084
	MSRSINT0               MSR = 0x40000090 // to MSRSINT15
	MSRSINT15              MSR = 0x4000009F
	MSRSTIMER0Config       MSR = 0x400000B0 // config and count alternate
	MSRSTIMER0Count        MSR = 0x400000B1
	MSRSTIMER3Count        MSR = 0x400000B7
	MSRGuestIdle           MSR = 0x400000F0
	MSRCrashP0             MSR = 0x40000100 // P, to MSRCrashP4
	MSRCrashP4             MSR = 0x40000104
	MSRCrashCtl            MSR = 0x40000105 // P
	MSRTSCInvariantControl MSR = 0x40000118 // P

	// FirstMSR and LastMSR bound the range that a machine must trap so that
	// every synthetic MSR, known or not, is answered by the hypervisor.
	FirstMSR MSR = 0x40000000
	LastMSR  MSR = 0x400001FF
)

// MSRSINT returns the register of SINT n, 0 to 15.
func MSRSINT(n uint8) MSR { return MSRSINT0 + MSR(n) }

// MSRSTIMERConfig returns the configuration register of timer n, 0 to 3.
func MSRSTIMERConfig(n int) MSR { return MSRSTIMER0Config + 2*MSR(n) }

// MSRSTIMERCount returns the count register of timer n, 0 to 3.
func MSRSTIMERCount(n int) MSR { return MSRSTIMER0Count + 2*MSR(n) }

// A PageRegister is the common shape of the registers that place an overlay
// page: bit 0 enables it, bits 63:12 are its page number. HYPERCALL also uses
// bit 1; the other bits are RsvdP.
type PageRegister uint64

const (
	pageEnable   = 1 << 0
	pageLocked   = 1 << 1
	pageBaseMask = ^uint64(guest.PageSize - 1)
)

// MakePageRegister returns the register value that places the page at base
// and enables it as told. Bits 11:0 of base are dropped.
func MakePageRegister(base guest.GPA, enable bool) PageRegister {
	r := PageRegister(uint64(base) & pageBaseMask)
	if enable {
		r |= pageEnable
	}
	return r
}

// Enabled reports bit 0.
func (r PageRegister) Enabled() bool { return r&pageEnable != 0 }

// Locked reports bit 1, which only HYPERCALL has.
func (r PageRegister) Locked() bool { return r&pageLocked != 0 }

// Base returns the address of the page.
func (r PageRegister) Base() guest.GPA { return guest.GPA(uint64(r) & pageBaseMask) }

// Clean returns r with every bit other than enable and base cleared.
func (r PageRegister) Clean() PageRegister { return r & (pageEnable | PageRegister(pageBaseMask)) }

// CleanLockable is Clean for HYPERCALL: it keeps the locked bit too.
func (r PageRegister) CleanLockable() PageRegister { return r.Clean() | r&pageLocked }

// Disabled returns r with bit 0 cleared.
func (r PageRegister) Disabled() PageRegister { return r &^ pageEnable }

// SCONTROLEnable is the one defined bit of SCONTROL.
const SCONTROLEnable = 1 << 0

// SVERSION is the only version of the SynIC there is.
const SVERSION = 1

// ResetRequest is bit 0 of the RESET register.
const ResetRequest = 1 << 0

// TSCInvariantControl is the one defined bit of TSC_INVARIANT_CONTROL: the
// guest asks for an invariant TSC to be shown in CPUID 0x80000007.
const TSCInvariantControl = 1 << 0

// Bits of CRASH_CTL (TLFS "Guest Crash Enlightenment Interface").
const (
	CrashMessage uint64 = 1 << 62 // P3 is the GPA, P4 the length of a text
	CrashNotify  uint64 = 1 << 63 // act on the parameters now
	CrashNoDump  uint64 = 1 << 61 // the guest will not write a dump of its own

	// CrashMessageMax is the longest text of a crash report in bytes: the
	// guest provides at most one page.
	CrashMessageMax = guest.PageSize
)
