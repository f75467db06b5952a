package hv

import "fmt"

// A Status is an HV_STATUS: the result of a hypercall.
type Status uint16

// Status values.
const (
	StatusSuccess               Status = 0x0000
	StatusInvalidHypercallCode  Status = 0x0002
	StatusInvalidHypercallInput Status = 0x0003
	StatusInvalidAlignment      Status = 0x0004
	StatusInvalidParameter      Status = 0x0005
	StatusAccessDenied          Status = 0x0006
	StatusInvalidPartitionState Status = 0x0007
	StatusOperationDenied       Status = 0x0008
	StatusUnknownProperty       Status = 0x0009
	StatusPropertyOutOfRange    Status = 0x000A
	StatusInsufficientMemory    Status = 0x000B
	StatusInvalidPartitionID    Status = 0x000D
	StatusInvalidVPIndex        Status = 0x000E
	StatusNotFound              Status = 0x0010
	StatusInvalidPortID         Status = 0x0011
	StatusInvalidConnectionID   Status = 0x0012
	StatusInsufficientBuffers   Status = 0x0013
	StatusNotAcknowledged       Status = 0x0014
	StatusInvalidVPState        Status = 0x0015
	StatusAcknowledged          Status = 0x0016
	StatusInvalidSynICState     Status = 0x0018
	StatusObjectInUse           Status = 0x0019
	StatusNoData                Status = 0x001B
	StatusInactive              Status = 0x001C
	StatusNoResources           Status = 0x001D
	StatusFeatureUnavailable    Status = 0x001E
	StatusInvalidRegisterValue  Status = 0x0050
	StatusOperationFailed       Status = 0x0071
	StatusTimeout               Status = 0x0078
)

var statusNames = map[Status]string{
	StatusSuccess:               "HV_STATUS_SUCCESS",
	StatusInvalidHypercallCode:  "HV_STATUS_INVALID_HYPERCALL_CODE",
	StatusInvalidHypercallInput: "HV_STATUS_INVALID_HYPERCALL_INPUT",
	StatusInvalidAlignment:      "HV_STATUS_INVALID_ALIGNMENT",
	StatusInvalidParameter:      "HV_STATUS_INVALID_PARAMETER",
	StatusAccessDenied:          "HV_STATUS_ACCESS_DENIED",
	StatusInvalidPartitionState: "HV_STATUS_INVALID_PARTITION_STATE",
	StatusOperationDenied:       "HV_STATUS_OPERATION_DENIED",
	StatusUnknownProperty:       "HV_STATUS_UNKNOWN_PROPERTY",
	StatusPropertyOutOfRange:    "HV_STATUS_PROPERTY_VALUE_OUT_OF_RANGE",
	StatusInsufficientMemory:    "HV_STATUS_INSUFFICIENT_MEMORY",
	StatusInvalidPartitionID:    "HV_STATUS_INVALID_PARTITION_ID",
	StatusInvalidVPIndex:        "HV_STATUS_INVALID_VP_INDEX",
	StatusNotFound:              "HV_STATUS_NOT_FOUND",
	StatusInvalidPortID:         "HV_STATUS_INVALID_PORT_ID",
	StatusInvalidConnectionID:   "HV_STATUS_INVALID_CONNECTION_ID",
	StatusInsufficientBuffers:   "HV_STATUS_INSUFFICIENT_BUFFERS",
	StatusNotAcknowledged:       "HV_STATUS_NOT_ACKNOWLEDGED",
	StatusInvalidVPState:        "HV_STATUS_INVALID_VP_STATE",
	StatusAcknowledged:          "HV_STATUS_ACKNOWLEDGED",
	StatusInvalidSynICState:     "HV_STATUS_INVALID_SYNIC_STATE",
	StatusObjectInUse:           "HV_STATUS_OBJECT_IN_USE",
	StatusNoData:                "HV_STATUS_NO_DATA",
	StatusInactive:              "HV_STATUS_INACTIVE",
	StatusNoResources:           "HV_STATUS_NO_RESOURCES",
	StatusFeatureUnavailable:    "HV_STATUS_FEATURE_UNAVAILABLE",
	StatusInvalidRegisterValue:  "HV_STATUS_INVALID_REGISTER_VALUE",
	StatusOperationFailed:       "HV_STATUS_OPERATION_FAILED",
	StatusTimeout:               "HV_STATUS_TIMEOUT",
}

// String returns the TLFS name of the status, or its number.
func (s Status) String() string {
	if n, ok := statusNames[s]; ok {
		return n
	}
	return fmt.Sprintf("HV_STATUS(%#04x)", uint16(s))
}

// Error makes a Status usable where an error is wanted. StatusSuccess is not
// an error; do not put it into one.
func (s Status) Error() string { return s.String() }
