// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

/// @title The part of Multicall3 that payment facilitators read through.
/// @notice On public chains a contract with this interface lives at 0xcA11bde05977b3631167028862bE2a173976CA11; the local
/// chain puts this one there.
contract Multicall3 {
    struct Call {
        address target;
        bytes callData;
    }

    struct Call3 {
        address target;
        bool allowFailure;
        bytes callData;
    }

    struct Result {
        bool success;
        bytes returnData;
    }

    function tryAggregate(
        bool requireSuccess,
        Call[] calldata calls
    ) external payable returns (Result[] memory returnData) {
        returnData = new Result[](calls.length);
        for (uint256 i = 0; i < calls.length; ++i) {
            returnData[i] = _call(calls[i].target, calls[i].callData, !requireSuccess);
        }
    }

    function aggregate3(Call3[] calldata calls) external payable returns (Result[] memory returnData) {
        returnData = new Result[](calls.length);
        for (uint256 i = 0; i < calls.length; ++i) {
            returnData[i] = _call(calls[i].target, calls[i].callData, calls[i].allowFailure);
        }
    }

    function _call(address target, bytes calldata data, bool allowFailure) private returns (Result memory) {
        (bool success, bytes memory answer) = target.call(data);
        require(success || allowFailure, "Multicall3: call failed");
        return Result(success, answer);
    }
}
