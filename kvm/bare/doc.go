// Package bare builds the smallest guests there are: one processor, one
// megabyte of RAM, a few bytes of code in real or long mode, no firmware and
// no devices. Probes and tests of KVM itself run on them.
//
// It stands on packages kvm and guest, and knows nothing of Hyper-V.
package bare
