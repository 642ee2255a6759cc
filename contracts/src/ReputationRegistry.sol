// SPDX-License-Identifier: Apache-2.0
pragma solidity 0.8.37;

import {AgentRights} from "./AgentRights.sol";

/// @title The ERC-8004 reputation registry of the local chain.
/// @notice Anyone but an agent's owner and operators may rate it with a decimal number, revoke the rating, and respond.
/// @dev Ratings of one client for one agent are numbered from 1.
contract ReputationRegistry is AgentRights {
    struct Feedback {
        int128 value;
        uint8 valueDecimals;
        bool isRevoked;
        string tag1;
        string tag2;
    }

    event NewFeedback(
        uint256 indexed agentId,
        address indexed clientAddress,
        uint64 feedbackIndex,
        int128 value,
        uint8 valueDecimals,
        string indexed indexedTag1,
        string tag1,
        string tag2,
        string endpoint,
        string feedbackURI,
        bytes32 feedbackHash
    );
    event FeedbackRevoked(uint256 indexed agentId, address indexed clientAddress, uint64 indexed feedbackIndex);
    event ResponseAppended(
        uint256 indexed agentId,
        address indexed clientAddress,
        uint64 feedbackIndex,
        address indexed responder,
        string responseURI,
        bytes32 responseHash
    );

    uint8 private constant MAX_DECIMALS = 18;
    /// @dev Keeps a sum scaled to 18 decimals inside int256.
    int128 private constant MAX_ABS_VALUE = 1e38;

    mapping(uint256 agentId => mapping(address client => Feedback[])) private _feedback;
    mapping(uint256 agentId => address[]) private _clients;
    mapping(bytes32 feedbackKey => address[]) private _responders;
    mapping(bytes32 feedbackKey => mapping(address responder => uint64)) private _responses;

    constructor(address identityRegistry) AgentRights(identityRegistry) {}

    function giveFeedback(
        uint256 agentId,
        int128 value,
        uint8 valueDecimals,
        string calldata tag1,
        string calldata tag2,
        string calldata endpoint,
        string calldata feedbackURI,
        bytes32 feedbackHash
    ) external {
        require(valueDecimals <= MAX_DECIMALS, "too many decimals");
        require(-MAX_ABS_VALUE <= value && value <= MAX_ABS_VALUE, "value too large");
        require(!_controls(msg.sender, agentId), "Self-feedback not allowed");
        Feedback[] storage list = _feedback[agentId][msg.sender];
        if (list.length == 0) _clients[agentId].push(msg.sender);
        list.push(Feedback(value, valueDecimals, false, tag1, tag2));
        emit NewFeedback(
            agentId,
            msg.sender,
            uint64(list.length),
            value,
            valueDecimals,
            tag1,
            tag1,
            tag2,
            endpoint,
            feedbackURI,
            feedbackHash
        );
    }

    function revokeFeedback(uint256 agentId, uint64 feedbackIndex) external {
        Feedback storage feedback = _at(agentId, msg.sender, feedbackIndex);
        require(!feedback.isRevoked, "Already revoked");
        feedback.isRevoked = true;
        emit FeedbackRevoked(agentId, msg.sender, feedbackIndex);
    }

    function appendResponse(
        uint256 agentId,
        address clientAddress,
        uint64 feedbackIndex,
        string calldata responseURI,
        bytes32 responseHash
    ) external {
        require(bytes(responseURI).length > 0, "Empty URI");
        _at(agentId, clientAddress, feedbackIndex);
        bytes32 key = _key(agentId, clientAddress, feedbackIndex);
        if (_responses[key][msg.sender]++ == 0) _responders[key].push(msg.sender);
        emit ResponseAppended(agentId, clientAddress, feedbackIndex, msg.sender, responseURI, responseHash);
    }

    function getLastIndex(uint256 agentId, address clientAddress) public view returns (uint64) {
        return uint64(_feedback[agentId][clientAddress].length);
    }

    function getClients(uint256 agentId) external view returns (address[] memory) {
        return _clients[agentId];
    }

    function readFeedback(
        uint256 agentId,
        address clientAddress,
        uint64 feedbackIndex
    )
        external
        view
        returns (int128 value, uint8 valueDecimals, string memory tag1, string memory tag2, bool isRevoked)
    {
        Feedback storage feedback = _at(agentId, clientAddress, feedbackIndex);
        return (feedback.value, feedback.valueDecimals, feedback.tag1, feedback.tag2, feedback.isRevoked);
    }

    /// @notice The mean of the named clients' ratings, with the number of decimals that most of them used.
    function getSummary(
        uint256 agentId,
        address[] calldata clientAddresses,
        string calldata tag1,
        string calldata tag2
    ) external view returns (uint64 count, int128 summaryValue, uint8 summaryValueDecimals) {
        require(clientAddresses.length > 0, "clientAddresses required");
        int256 total = 0;
        uint64[19] memory uses;
        for (uint256 i = 0; i < clientAddresses.length; ++i) {
            Feedback[] storage list = _feedback[agentId][clientAddresses[i]];
            for (uint256 j = 0; j < list.length; ++j) {
                if (!_counts(list[j], tag1, tag2, false)) continue;
                total += int256(list[j].value) * int256(10 ** (MAX_DECIMALS - list[j].valueDecimals));
                ++uses[list[j].valueDecimals];
                ++count;
            }
        }
        if (count == 0) return (0, 0, 0);
        for (uint8 decimals = 1; decimals <= MAX_DECIMALS; ++decimals) {
            if (uses[decimals] > uses[summaryValueDecimals]) summaryValueDecimals = decimals;
        }
        int256 mean = total / int256(uint256(count));
        summaryValue = int128(mean / int256(10 ** (MAX_DECIMALS - summaryValueDecimals)));
    }

    struct Rows {
        address[] clients;
        uint64[] feedbackIndexes;
        int128[] values;
        uint8[] valueDecimals;
        string[] tag1s;
        string[] tag2s;
        bool[] revokedStatuses;
    }

    /// @notice Every matching rating; an empty client list means all clients.
    function readAllFeedback(
        uint256 agentId,
        address[] calldata clientAddresses,
        string calldata tag1,
        string calldata tag2,
        bool includeRevoked
    )
        external
        view
        returns (
            address[] memory,
            uint64[] memory,
            int128[] memory,
            uint8[] memory,
            string[] memory,
            string[] memory,
            bool[] memory
        )
    {
        address[] memory who = clientAddresses;
        if (who.length == 0) who = _clients[agentId];
        Rows memory rows = _collect(agentId, who, tag1, tag2, includeRevoked);
        return (
            rows.clients,
            rows.feedbackIndexes,
            rows.values,
            rows.valueDecimals,
            rows.tag1s,
            rows.tag2s,
            rows.revokedStatuses
        );
    }

    /// @notice Counts responses: of all clients for the zero address, of all ratings for index 0, of all responders for an
    /// empty list.
    function getResponseCount(
        uint256 agentId,
        address clientAddress,
        uint64 feedbackIndex,
        address[] calldata responders
    ) external view returns (uint64 count) {
        if (clientAddress != address(0)) return _clientResponses(agentId, clientAddress, feedbackIndex, responders);
        address[] storage clients = _clients[agentId];
        for (uint256 i = 0; i < clients.length; ++i) {
            count += _clientResponses(agentId, clients[i], 0, responders);
        }
    }

    function _clientResponses(
        uint256 agentId,
        address client,
        uint64 feedbackIndex,
        address[] calldata responders
    ) private view returns (uint64 count) {
        uint64 first = feedbackIndex == 0 ? 1 : feedbackIndex;
        uint64 last = feedbackIndex == 0 ? getLastIndex(agentId, client) : feedbackIndex;
        for (uint64 index = first; index <= last; ++index) {
            bytes32 key = _key(agentId, client, index);
            address[] memory who = responders;
            if (who.length == 0) who = _responders[key];
            for (uint256 i = 0; i < who.length; ++i) {
                count += _responses[key][who[i]];
            }
        }
    }

    function _collect(
        uint256 agentId,
        address[] memory clients,
        string calldata tag1,
        string calldata tag2,
        bool includeRevoked
    ) private view returns (Rows memory rows) {
        uint256 size = 0;
        for (uint256 i = 0; i < clients.length; ++i) {
            Feedback[] storage list = _feedback[agentId][clients[i]];
            for (uint256 j = 0; j < list.length; ++j) {
                if (_counts(list[j], tag1, tag2, includeRevoked)) ++size;
            }
        }
        rows = Rows(
            new address[](size),
            new uint64[](size),
            new int128[](size),
            new uint8[](size),
            new string[](size),
            new string[](size),
            new bool[](size)
        );
        uint256 row = 0;
        for (uint256 i = 0; i < clients.length; ++i) {
            Feedback[] storage list = _feedback[agentId][clients[i]];
            for (uint256 j = 0; j < list.length; ++j) {
                if (!_counts(list[j], tag1, tag2, includeRevoked)) continue;
                rows.clients[row] = clients[i];
                rows.feedbackIndexes[row] = uint64(j + 1);
                rows.values[row] = list[j].value;
                rows.valueDecimals[row] = list[j].valueDecimals;
                rows.tag1s[row] = list[j].tag1;
                rows.tag2s[row] = list[j].tag2;
                rows.revokedStatuses[row] = list[j].isRevoked;
                ++row;
            }
        }
    }

    function _counts(
        Feedback storage feedback,
        string calldata tag1,
        string calldata tag2,
        bool includeRevoked
    ) private view returns (bool) {
        return
            (includeRevoked || !feedback.isRevoked) && _matches(tag1, feedback.tag1) && _matches(tag2, feedback.tag2);
    }

    function _at(
        uint256 agentId,
        address client,
        uint64 feedbackIndex
    ) private view returns (Feedback storage) {
        Feedback[] storage list = _feedback[agentId][client];
        require(feedbackIndex > 0, "index must be > 0");
        require(feedbackIndex <= list.length, "index out of bounds");
        return list[feedbackIndex - 1];
    }

    function _key(uint256 agentId, address client, uint64 feedbackIndex) private pure returns (bytes32) {
        return keccak256(abi.encode(agentId, client, feedbackIndex));
    }
}
