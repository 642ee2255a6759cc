// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgentRights} from "./AgentRights.sol";

/// @title The ERC-8004 validation registry of the local chain.
/// @notice An agent's owner names a validator and a request; that validator answers 0..100, as often as it likes.
/// @dev `requestHash` is one key for everybody: whoever takes it first has it. Callers salt it.
contract ValidationRegistry is AgentRights {
    struct Status {
        address validatorAddress;
        uint8 response;
        bool answered;
        uint256 agentId;
        bytes32 responseHash;
        string tag;
        uint256 lastUpdate;
    }

    event ValidationRequest(
        address indexed validatorAddress,
        uint256 indexed agentId,
        string requestURI,
        bytes32 indexed requestHash
    );
    event ValidationResponse(
        address indexed validatorAddress,
        uint256 indexed agentId,
        bytes32 indexed requestHash,
        uint8 response,
        string responseURI,
        bytes32 responseHash,
        string tag
    );

    uint8 private constant MAX_RESPONSE = 100;

    mapping(bytes32 requestHash => Status) private _status;
    mapping(uint256 agentId => bytes32[]) private _byAgent;
    mapping(address validatorAddress => bytes32[]) private _byValidator;

    constructor(address identityRegistry) AgentRights(identityRegistry) {}

    function validationRequest(
        address validatorAddress,
        uint256 agentId,
        string calldata requestURI,
        bytes32 requestHash
    ) external {
        require(validatorAddress != address(0), "bad validator");
        Status storage status = _status[requestHash];
        require(status.validatorAddress == address(0), "exists");
        require(_controls(msg.sender, agentId), "Not authorized");
        status.validatorAddress = validatorAddress;
        status.agentId = agentId;
        status.lastUpdate = block.timestamp;
        _byAgent[agentId].push(requestHash);
        _byValidator[validatorAddress].push(requestHash);
        emit ValidationRequest(validatorAddress, agentId, requestURI, requestHash);
    }

    function validationResponse(
        bytes32 requestHash,
        uint8 response,
        string calldata responseURI,
        bytes32 responseHash,
        string calldata tag
    ) external {
        require(response <= MAX_RESPONSE, "resp>100");
        Status storage status = _known(requestHash);
        require(msg.sender == status.validatorAddress, "not validator");
        status.response = response;
        status.answered = true;
        status.responseHash = responseHash;
        status.tag = tag;
        status.lastUpdate = block.timestamp;
        emit ValidationResponse(msg.sender, status.agentId, requestHash, response, responseURI, responseHash, tag);
    }

    /// @notice A request without an answer reads as response 0; `lastUpdate` is then the time of the request.
    function getValidationStatus(
        bytes32 requestHash
    )
        external
        view
        returns (
            address validatorAddress,
            uint256 agentId,
            uint8 response,
            bytes32 responseHash,
            string memory tag,
            uint256 lastUpdate
        )
    {
        Status storage status = _known(requestHash);
        return (
            status.validatorAddress,
            status.agentId,
            status.response,
            status.responseHash,
            status.tag,
            status.lastUpdate
        );
    }

    /// @notice Average over answered requests; an empty list or tag means no filter.
    function getSummary(
        uint256 agentId,
        address[] calldata validatorAddresses,
        string calldata tag
    ) external view returns (uint64 count, uint8 averageResponse) {
        bytes32[] storage hashes = _byAgent[agentId];
        uint256 total = 0;
        for (uint256 i = 0; i < hashes.length; ++i) {
            Status storage status = _status[hashes[i]];
            if (
                status.answered && _matches(tag, status.tag) && _listed(status.validatorAddress, validatorAddresses)
            ) {
                total += status.response;
                ++count;
            }
        }
        averageResponse = count == 0 ? 0 : uint8(total / count);
    }

    function getAgentValidations(uint256 agentId) external view returns (bytes32[] memory) {
        return _byAgent[agentId];
    }

    function getValidatorRequests(address validatorAddress) external view returns (bytes32[] memory) {
        return _byValidator[validatorAddress];
    }

    function _known(bytes32 requestHash) private view returns (Status storage status) {
        status = _status[requestHash];
        require(status.validatorAddress != address(0), "unknown");
    }

    function _listed(address validator, address[] calldata list) private pure returns (bool) {
        for (uint256 i = 0; i < list.length; ++i) {
            if (list[i] == validator) return true;
        }
        return list.length == 0;
    }
}
