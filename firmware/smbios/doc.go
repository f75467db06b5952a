// Package smbios builds the machine's SMBIOS 3 tables (DMTF DSP0134): who made
// the system, its memory and its processors, as far as guests want to know.
//
// The maker is the one that guests on Hyper-V expect; firmware vendor and
// version are this program's. The tables lie where a guest without EFI looks
// for them, at 0xF0000. The package knows guest memory and nothing else.
package smbios
